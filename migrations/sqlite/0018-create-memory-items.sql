-- 0018-create-memory-items: what an agent notes for later, by kind and key.
--
-- Why:      an agent's structured memory outlives its context window.
-- Locks:    none (new table).
-- Rollback: drops the table; the notes of all jobs are lost.
--
-- depends: 0017-create-budget-reservations

CREATE TABLE IF NOT EXISTS memory_items (
    -- Notes of a job's agents, one for each kind and key. How much a job may note is in memory_limits.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    -- What sort of note it is, in the agent's own terms.
    kind TEXT NOT NULL,
    -- What the agent finds it by, within its kind.
    key TEXT NOT NULL,
    -- The note, any JSON value.
    content TEXT NOT NULL,
    -- Words to search by, an array of text.
    tags TEXT NOT NULL DEFAULT '[]',
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT memory_items_id_check CHECK (length(id) = 36),
    CONSTRAINT memory_items_kind_check CHECK (length(kind) > 0 AND length(kind) <= 255),
    CONSTRAINT memory_items_key_check CHECK (length(key) > 0 AND length(key) <= 255),
    CONSTRAINT memory_items_content_check CHECK (json_valid(content)),
    CONSTRAINT memory_items_tags_check CHECK (json_valid(tags) AND json_type(tags) = 'array'),
    CONSTRAINT memory_items_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT memory_items_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- One note for each kind and key.
CREATE UNIQUE INDEX IF NOT EXISTS ix_memory_items_job_id_kind_key
ON memory_items (job_id, kind, key);

-- A page of a job's notes, oldest first.
CREATE INDEX IF NOT EXISTS ix_memory_items_job_id
ON memory_items (job_id, id);

-- A page of one kind, without a sort.
CREATE INDEX IF NOT EXISTS ix_memory_items_job_id_kind
ON memory_items (job_id, kind, id);

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS memory_items_updated_at_given
AFTER UPDATE OF updated_at ON memory_items FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE memory_items
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS memory_items_updated_at
AFTER UPDATE ON memory_items FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE memory_items
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;
