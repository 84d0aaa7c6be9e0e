-- 0019-create-memory-files: the files that a job keeps, with their bytes.
--
-- Why:      what an agent was given or made is read again by its next step, on any machine.
-- Locks:    none (new tables).
-- Rollback: drops the tables; the files of all jobs are lost.
--
-- depends: 0018-create-memory-items

CREATE TABLE IF NOT EXISTS memory_files (
    -- Files in the sandboxes of jobs. A file is written as a whole and never changed: writing to its path
    -- again puts another row, with another id, in its place.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    -- Where it lies in the job's sandbox: relative, with `/`, without `.` and `..`.
    path TEXT NOT NULL,
    -- The length of the whole file.
    size_bytes INTEGER NOT NULL,
    -- SHA-256 of the whole file, in lower-case hex.
    sha256 TEXT NOT NULL,
    -- When it was written.
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- The file's first 256 KiB, which is all of most files; the rest is in memory_file_chunks. The last
    -- column, so that the others are read without it.
    bytes BLOB NOT NULL,
    CONSTRAINT memory_files_id_check CHECK (length(id) = 36),
    CONSTRAINT memory_files_path_check CHECK (
        length(path) > 0
        AND length(path) <= 1024
        AND instr(path, '\') = 0
        AND instr('/' || path || '/', '//') = 0
        AND instr('/' || path || '/', '/./') = 0
        AND instr('/' || path || '/', '/../') = 0
        AND path NOT GLOB '[A-Za-z]:*'
    ),
    CONSTRAINT memory_files_size_bytes_check CHECK (size_bytes >= length(bytes)),
    CONSTRAINT memory_files_sha256_check CHECK (length(sha256) = 64),
    CONSTRAINT memory_files_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE UNIQUE INDEX IF NOT EXISTS ix_memory_files_job_id_path
ON memory_files (job_id, path);

-- What a job's files add up to, without reading the files.
CREATE INDEX IF NOT EXISTS ix_memory_files_job_id_size_bytes
ON memory_files (job_id, size_bytes);

CREATE TABLE IF NOT EXISTS memory_file_uploads (
    -- Files that are being written. A row that grew old belongs to a writer that died, and is swept with
    -- its chunks.
    -- What the file's id will be.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT memory_file_uploads_id_check CHECK (length(id) = 36),
    CONSTRAINT memory_file_uploads_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_memory_file_uploads_job_id
ON memory_file_uploads (job_id);

CREATE INDEX IF NOT EXISTS ix_memory_file_uploads_created_at
ON memory_file_uploads (created_at);

CREATE TABLE IF NOT EXISTS memory_file_chunks (
    -- What large files hold behind their first 256 KiB, in pieces of that size.
    -- The file, or the upload that becomes it. No foreign key, for it is either: the triggers below clean up.
    file_id TEXT NOT NULL,
    -- The place in the file, from 1 without gaps.
    sequence INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (file_id, sequence),
    CONSTRAINT memory_file_chunks_sequence_check CHECK (sequence > 0),
    CONSTRAINT memory_file_chunks_bytes_check CHECK (length(bytes) > 0)
) STRICT;

-- A file's chunks go with it, also when its job is deleted.
CREATE TRIGGER IF NOT EXISTS memory_files_chunks
AFTER DELETE ON memory_files FOR EACH ROW
BEGIN
    DELETE FROM memory_file_chunks
    WHERE file_id = old.id;
END;

-- So do those of an upload, unless they have become a file's.
CREATE TRIGGER IF NOT EXISTS memory_file_uploads_chunks
AFTER DELETE ON memory_file_uploads FOR EACH ROW
WHEN
    NOT EXISTS (
        SELECT 1 FROM memory_files
        WHERE id = old.id
    )
BEGIN
    DELETE FROM memory_file_chunks
    WHERE file_id = old.id;
END;
