-- 0022-create-memory-limits: how much a job may remember.
--
-- Why:      an agent that loops must not fill the database; what is too much is data, not code.
-- Locks:    none (new table).
-- Rollback: drops the table; limits that were set are lost, and an upgrade brings back the defaults.
--
-- depends: 0021-create-embedding-index

CREATE TABLE IF NOT EXISTS memory_limits (
    -- The limits of memory_items and memory_files: one row for all jobs, and one for each job that has its own.
    id TEXT NOT NULL PRIMARY KEY,
    -- The job whose limits they are; NULL for the limits of every other job.
    job_id TEXT REFERENCES jobs (id) ON DELETE CASCADE,
    -- Items of a job.
    max_items INTEGER NOT NULL,
    -- Bytes of an item's content, as JSON in UTF-8.
    max_item_bytes INTEGER NOT NULL,
    -- Tags of an item.
    max_item_tags INTEGER NOT NULL,
    -- Files of a job.
    max_files INTEGER NOT NULL,
    -- Bytes of a file.
    max_file_bytes INTEGER NOT NULL,
    -- Bytes of all files of a job.
    max_job_file_bytes INTEGER NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT memory_limits_id_check CHECK (length(id) = 36),
    CONSTRAINT memory_limits_max_items_check CHECK (max_items >= 0),
    CONSTRAINT memory_limits_max_item_bytes_check CHECK (max_item_bytes >= 0),
    CONSTRAINT memory_limits_max_item_tags_check CHECK (max_item_tags >= 0),
    CONSTRAINT memory_limits_max_files_check CHECK (max_files >= 0),
    CONSTRAINT memory_limits_max_file_bytes_check CHECK (max_file_bytes >= 0),
    CONSTRAINT memory_limits_max_job_file_bytes_check CHECK (max_job_file_bytes >= 0),
    CONSTRAINT memory_limits_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT memory_limits_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE UNIQUE INDEX IF NOT EXISTS ix_memory_limits_job_id
ON memory_limits (job_id);

-- The row for all jobs is there once and stays.
CREATE UNIQUE INDEX IF NOT EXISTS ix_memory_limits_default
ON memory_limits ((job_id IS NULL))
WHERE job_id IS NULL;

CREATE TRIGGER IF NOT EXISTS memory_limits_keep_default
BEFORE DELETE ON memory_limits FOR EACH ROW
WHEN old.job_id IS NULL
BEGIN
    SELECT raise(ABORT, 'the limits of all jobs are changed, not deleted');
END;

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS memory_limits_updated_at_given
AFTER UPDATE OF updated_at ON memory_limits FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE memory_limits
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS memory_limits_updated_at
AFTER UPDATE ON memory_limits FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE memory_limits
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;

INSERT INTO memory_limits (
    id,
    max_items,
    max_item_bytes,
    max_item_tags,
    max_files,
    max_file_bytes,
    max_job_file_bytes
)
VALUES ('00000000-0000-7000-8000-000000000000', 1000, 65536, 20, 1000, 67108864, 268435456)
ON CONFLICT DO NOTHING;
