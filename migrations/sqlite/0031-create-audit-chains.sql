-- 0031-create-audit-chains: events and tool executions chained by hash, to show tampering.
--
-- Why:      who can write to the file can rewrite history; the chains let it be seen.
-- Locks:    reads all events once, to count those from before the chains.
-- Rollback: drops the chains and checkpoints; the rows stay, and nothing vouches for them any more.
--
-- depends: 0030-create-configurations

CREATE TABLE IF NOT EXISTS audit_chains (
    -- Where each chain of hashed rows ends: the events of a session, the tool executions of a task. It
    -- outlives the rows as the stub of what was purged.
    resource TEXT NOT NULL,
    -- The session or the task.
    resource_id TEXT NOT NULL,
    -- Rows from before the chains, which have no hash.
    unchained INTEGER NOT NULL DEFAULT 0,
    -- How many links there ever were.
    length INTEGER NOT NULL DEFAULT 0,
    -- Place and hash of the last link, '<place>:<hash>': what the next one follows. Empty before the first.
    last TEXT NOT NULL DEFAULT '',
    -- How many links went with their session or task, and what the first one behind them follows.
    purged INTEGER NOT NULL DEFAULT 0,
    base TEXT NOT NULL DEFAULT '',
    purged_at TEXT,
    PRIMARY KEY (resource, resource_id),
    CONSTRAINT audit_chains_resource_check CHECK (
        resource = 'events'
        OR resource = 'tool_executions'
    ),
    CONSTRAINT audit_chains_length_check CHECK (length >= purged AND purged >= 0 AND unchained >= 0),
    CONSTRAINT audit_chains_purged_at_check CHECK (purged_at GLOB '????-??-??T??:??:??.???Z')
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS audit_checkpoints (
    -- Where the chains ended at a checkpoint: only those that had grown since the one before it. A
    -- checkpoint's digest covers these rows and the digest before, and is kept outside.
    checkpoint INTEGER NOT NULL,
    resource TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    length INTEGER NOT NULL,
    last TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (checkpoint, resource, resource_id),
    CONSTRAINT audit_checkpoints_checkpoint_check CHECK (checkpoint > 0)
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS ix_audit_checkpoints_resource
ON audit_checkpoints (resource, resource_id, length);

-- SHA-256 over the event and what it follows; NULL of events from before the chains.
ALTER TABLE events ADD COLUMN hash TEXT;

INSERT INTO audit_chains (resource, resource_id, unchained)
SELECT
    'events' AS resource,
    session_id,
    count(*) AS unchained
FROM events
GROUP BY session_id;

CREATE TRIGGER IF NOT EXISTS events_chain
AFTER INSERT ON events FOR EACH ROW
WHEN new.hash IS NOT NULL
BEGIN
    INSERT INTO audit_chains (resource, resource_id, length, last)
    VALUES ('events', new.session_id, 1, new.position || ':' || new.hash)
    ON CONFLICT (resource, resource_id) DO UPDATE
    SET
        length = length + 1,
        last = excluded.last;
END;

CREATE TRIGGER IF NOT EXISTS tool_executions_chain_start
AFTER INSERT ON tool_executions FOR EACH ROW
WHEN new.hash IS NOT NULL
BEGIN
    INSERT INTO audit_chains (resource, resource_id, length, last)
    VALUES ('tool_executions', new.task_id, 1, new.sequence || ':' || new.hash)
    ON CONFLICT (resource, resource_id) DO UPDATE
    SET
        length = length + 1,
        last = excluded.last;
END;

CREATE TRIGGER IF NOT EXISTS tool_executions_chain_end
AFTER UPDATE OF finished_hash ON tool_executions FOR EACH ROW
WHEN old.finished_hash IS NULL AND new.finished_hash IS NOT NULL
BEGIN
    UPDATE audit_chains
    SET
        length = length + 1,
        last = new.finished_sequence || ':' || new.finished_hash
    WHERE resource = 'tool_executions' AND resource_id = new.task_id;
END;

-- A session's or a task's rows go with it, and leave their chain's end as a stub.
CREATE TRIGGER IF NOT EXISTS sessions_purge_chain
AFTER DELETE ON sessions FOR EACH ROW
BEGIN
    UPDATE audit_chains
    SET
        unchained = 0,
        purged = length,
        base = last,
        purged_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE resource = 'events' AND resource_id = old.id;
END;

CREATE TRIGGER IF NOT EXISTS tasks_purge_chain
AFTER DELETE ON tasks FOR EACH ROW
BEGIN
    UPDATE audit_chains
    SET
        unchained = 0,
        purged = length,
        base = last,
        purged_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE resource = 'tool_executions' AND resource_id = old.id;
END;
