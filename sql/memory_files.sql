-- memory_files: the files that a job keeps, with their bytes.
-- A large file is uploaded chunk by chunk beside its upload's row, so that no transaction lasts as long as
-- its writer takes; then it takes its place in one transaction. A trigger removes the chunks of files and
-- uploads that are deleted.

-- name: delete_memory_file_at(job_id, path)!
-- What is written to a path replaces what is there.
DELETE FROM memory_files
WHERE job_id = :job_id AND path = :path;

-- name: create_memory_file(id, job_id, path, size_bytes, sha256, created_at, bytes)<!
-- Comes behind delete_memory_file_at, in its transaction. The limits that hold for the job are compared
-- where the file is written, so that no race gets past them; so is whether a path is a folder and a file at
-- once, which no file system can hold. The job's files are few, and counted all the same.
-- No row: one of them forbids it.
INSERT INTO memory_files (id, job_id, path, size_bytes, sha256, created_at, bytes)
SELECT
    :id,
    :job_id,
    :path,
    :size_bytes,
    :sha256,
    :created_at,
    :bytes
FROM memory_limits AS l
WHERE
    l.id = coalesce(
        (
            SELECT own.id
            FROM memory_limits AS own
            WHERE own.job_id = :job_id
        ),
        (
            SELECT common.id
            FROM memory_limits AS common
            WHERE common.job_id IS NULL
        )
    )
    AND :size_bytes <= l.max_file_bytes
    AND (
        SELECT count(*)
        FROM memory_files AS f
        WHERE f.job_id = :job_id
    ) < l.max_files
    AND (
        SELECT coalesce(sum(f.size_bytes), 0)
        FROM memory_files AS f
        WHERE f.job_id = :job_id
    ) + :size_bytes <= l.max_job_file_bytes
    AND NOT EXISTS (
        SELECT 1
        FROM memory_files AS f
        WHERE
            f.job_id = :job_id
            AND (
                substr(f.path, 1, length(:path) + 1) = :path || '/'
                OR substr(:path, 1, length(f.path) + 1) = f.path || '/'
            )
    )
RETURNING id, job_id, path, size_bytes, sha256, created_at;

-- name: measure_memory_files(job_id, path)^
-- The limits of a job's files, what it has beside the file at a path, and whether one of them is a folder of
-- that path, or it of one of them.
SELECT
    l.max_file_bytes,
    l.max_files,
    l.max_job_file_bytes,
    (
        SELECT count(*)
        FROM memory_files AS f
        WHERE f.job_id = :job_id AND f.path <> :path
    ) AS files,
    (
        SELECT coalesce(sum(f.size_bytes), 0)
        FROM memory_files AS f
        WHERE f.job_id = :job_id
    )
    - coalesce(
        (
            SELECT f.size_bytes
            FROM memory_files AS f
            WHERE f.job_id = :job_id AND f.path = :path
        ),
        0
    ) AS job_file_bytes,
    (
        SELECT count(*)
        FROM memory_files AS f
        WHERE
            f.job_id = :job_id
            AND (
                substr(f.path, 1, length(:path) + 1) = :path || '/'
                OR substr(:path, 1, length(f.path) + 1) = f.path || '/'
            )
    ) AS in_the_way
FROM memory_limits AS l
WHERE
    l.id = coalesce(
        (
            SELECT own.id
            FROM memory_limits AS own
            WHERE own.job_id = :job_id
        ),
        (
            SELECT common.id
            FROM memory_limits AS common
            WHERE common.job_id IS NULL
        )
    );

-- name: begin_memory_file_upload(id, job_id, created_at)!
-- Make a place for the chunks of a large file.
INSERT INTO memory_file_uploads (id, job_id, created_at)
VALUES (:id, :job_id, :created_at);

-- name: sweep_memory_file_uploads(before)!
-- Whoever began them before then has died; their chunks go with them.
DELETE FROM memory_file_uploads
WHERE created_at < :before;

-- name: append_memory_file_chunk(id, sequence, bytes)<!
-- No row: the upload was swept, or its job was deleted.
INSERT INTO memory_file_chunks (file_id, sequence, bytes)
SELECT
    :id,
    :sequence,
    :bytes
WHERE
    EXISTS (
        SELECT 1
        FROM memory_file_uploads AS u
        WHERE u.id = :id
    )
RETURNING sequence;

-- name: end_memory_file_upload(id)<!
-- Behind create_memory_file, the chunks are the file's; without it they are gone. No row: the upload was
-- swept, or its job was deleted, and its chunks with it.
DELETE FROM memory_file_uploads
WHERE id = :id
RETURNING id;

-- name: find_memory_file(job_id, path)^
-- What is known of a file, without its bytes. No row: the job has none at this path.
SELECT
    id,
    job_id,
    path,
    size_bytes,
    sha256,
    created_at
FROM memory_files
WHERE job_id = :job_id AND path = :path;

-- name: read_memory_file(job_id, path)^
-- A file with the first of its bytes. No row: the job has none at this path.
SELECT
    id,
    job_id,
    path,
    size_bytes,
    sha256,
    created_at,
    bytes
FROM memory_files
WHERE job_id = :job_id AND path = :path;

-- name: read_memory_file_chunk(id, sequence)$
-- The next of a large file's bytes. No row: the file was deleted or replaced meanwhile.
SELECT bytes
FROM memory_file_chunks
WHERE file_id = :id AND sequence = :sequence;

-- name: list_memory_files_by_job(job_id, after_path, limit)
-- A page of what is known of a job's files, in the order of their paths.
SELECT
    id,
    job_id,
    path,
    size_bytes,
    sha256,
    created_at
FROM memory_files
WHERE job_id = :job_id AND path > :after_path
ORDER BY path
LIMIT :limit;

-- name: delete_memory_file(job_id, path)<!
-- No row: the job has none at this path.
DELETE FROM memory_files
WHERE job_id = :job_id AND path = :path
RETURNING id;
