-- memory_files: the files that a job keeps, with their bytes.
-- A large file is uploaded chunk by chunk beside its upload's row, so that no transaction lasts as long as
-- its writer takes; then it takes its place in one transaction. The chunks of a file that goes, or of an
-- upload that was given up, are handed to a discarded upload and removed in pieces.

-- name: discard_memory_file(job_id, path, now)!
-- Comes before the file is deleted or replaced, in its transaction: hand its chunks to a discarded upload, for
-- the trigger would remove all of them at once.
INSERT INTO memory_file_uploads (id, job_id, created_at, discarded_at)
SELECT
    f.id,
    f.job_id,
    :now,
    :now
FROM memory_files AS f
WHERE f.job_id = :job_id AND f.path = :path AND f.size_bytes > length(f.bytes);

-- name: has_discarded_memory_files(job_id)$
-- Whether there are chunks to remove, told by the transaction that discarded them.
SELECT count(*) > 0 AS has_discarded
FROM (
    SELECT u.id
    FROM memory_file_uploads AS u
    WHERE u.job_id = :job_id AND u.discarded_at IS NOT NULL
    LIMIT 1 -- noqa: AM09
) AS d;

-- name: discard_memory_file_upload(id, now)!
-- The upload failed. What it holds is removed in pieces.
UPDATE memory_file_uploads
SET discarded_at = :now
WHERE id = :id AND discarded_at IS NULL;

-- name: delete_discarded_chunks(job_id, limit)<!
-- A piece of what was discarded. No row: none is left.
DELETE FROM memory_file_chunks
WHERE
    (file_id, sequence) IN (
        SELECT
            c.file_id,
            c.sequence
        FROM memory_file_uploads AS u
        INNER JOIN memory_file_chunks AS c ON u.id = c.file_id
        WHERE u.job_id = :job_id AND u.discarded_at IS NOT NULL
        LIMIT :limit -- noqa: AM09
    )
RETURNING file_id;

-- name: delete_discarded_uploads(job_id, limit)<!
-- A piece of what was discarded: uploads whose chunks are gone. No row: none is left.
DELETE FROM memory_file_uploads
WHERE
    id IN (
        SELECT u.id
        FROM memory_file_uploads AS u
        WHERE
            u.job_id = :job_id
            AND u.discarded_at IS NOT NULL
            AND NOT EXISTS (
                SELECT 1
                FROM memory_file_chunks AS c
                WHERE c.file_id = u.id
            )
        LIMIT :limit -- noqa: AM09
    )
RETURNING id;

-- name: delete_memory_file_at(job_id, path)!
-- What is written to a path replaces what is there.
DELETE FROM memory_files
WHERE job_id = :job_id AND path = :path;

-- name: create_memory_file(id, job_id, path, size_bytes, sha256, created_at, bytes)<!
-- Comes behind delete_memory_file_at, in its transaction. The limits that hold for the job are compared
-- where the file is written, so that no race gets past them; so is whether a path is a folder and a file at
-- once, which no file system can hold. The job's files are few, and counted all the same.
-- No row: one of them forbids it.
-- Needs: one writer, or two files could each fit within a limit, and not both.
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

-- name: sweep_memory_file_uploads(before, now)!
-- A writer that began before then has died.
UPDATE memory_file_uploads
SET discarded_at = :now
WHERE created_at < :before AND discarded_at IS NULL;

-- name: list_jobs_to_sweep(before, limit)
-- The jobs of uploads and files whose discarding process died before it removed them.
SELECT u.job_id
FROM memory_file_uploads AS u
WHERE u.created_at < :before AND u.discarded_at IS NOT NULL
ORDER BY u.created_at
LIMIT :limit;

-- name: append_memory_file_chunk(id, sequence, bytes)<!
-- No row: the upload was discarded, or its job was deleted.
-- Needs: one writer, or the upload may be discarded meanwhile.
INSERT INTO memory_file_chunks (file_id, sequence, bytes)
SELECT
    :id,
    :sequence,
    :bytes
WHERE
    EXISTS (
        SELECT 1
        FROM memory_file_uploads AS u
        WHERE u.id = :id AND u.discarded_at IS NULL
    )
RETURNING sequence;

-- name: end_memory_file_upload(id)<!
-- Comes behind create_memory_file, in its transaction: the chunks are the file's. No row: the upload was
-- discarded, or its job was deleted.
DELETE FROM memory_file_uploads
WHERE id = :id AND discarded_at IS NULL
RETURNING id;

-- name: find_memory_file(job_id, path)^
-- A file's metadata, without its bytes. No row: the job has no file at this path.
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
SELECT *
FROM memory_files
WHERE job_id = :job_id AND path = :path;

-- name: read_memory_file_chunk(id, sequence)$
-- The next of a large file's bytes. No row: the file was deleted or replaced meanwhile.
SELECT bytes
FROM memory_file_chunks
WHERE file_id = :id AND sequence = :sequence;

-- name: list_memory_files_by_job(job_id, after_path, limit)
-- A page of the metadata of a job's files, by path.
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

-- name: discard_files_of_job(job_id, now, limit, byte_limit)<!
-- A piece of a job's deletion: files are handed to discarded uploads, which keep the chunks until these are
-- removed in pieces. No row: none is left.
INSERT INTO memory_file_uploads (id, job_id, created_at, discarded_at)
SELECT
    whole.id,
    whole.job_id,
    :now,
    :now
FROM memory_files AS whole
WHERE
    whole.job_id = :job_id
    AND whole.path <= (
        WITH RECURSIVE piece (path, place, bytes) AS (
            SELECT
                (
                    SELECT n.path
                    FROM memory_files AS n
                    WHERE n.job_id = :job_id
                    ORDER BY n.path
                    LIMIT 1
                ) AS path,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.path
                    FROM memory_files AS n
                    WHERE n.job_id = :job_id AND n.path > p.path
                    ORDER BY n.path
                    LIMIT 1
                ) AS path,
                p.place + 1 AS place,
                p.bytes + min(f.size_bytes, 262144) AS bytes
            FROM piece AS p
            INNER JOIN memory_files AS f ON f.job_id = :job_id AND p.path = f.path
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.path)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_discarded_files_of_job(job_id)!
-- Comes behind discard_files_of_job, in its transaction, so that nobody reads half of a file.
DELETE FROM memory_files
WHERE
    job_id = :job_id
    AND id IN (
        SELECT u.id
        FROM memory_file_uploads AS u
        WHERE u.job_id = :job_id AND u.discarded_at IS NOT NULL
    );

-- name: discard_uploads_of_job(job_id, now)<!
-- An upload to the job learns of it with its next chunk. No row: there is none.
UPDATE memory_file_uploads
SET discarded_at = :now
WHERE job_id = :job_id AND discarded_at IS NULL
RETURNING id;
