-- 0035-create-audit-entries, undone: the entries and checkpoints are lost, and with them what proves purges.
--
-- The chains stay, but a link that was written after a purge covers that purge, which nothing names any more:
-- a session or task that was purged and then written to again no longer verifies. Applying the migration
-- anew does not bring that back. Take a backup first if history has to be proved.

DROP TABLE IF EXISTS audit_heads;
DROP TABLE IF EXISTS audit_checkpoints;

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

DROP TRIGGER IF EXISTS tool_executions_chain_end;

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

DROP TRIGGER IF EXISTS tool_executions_chain_start;

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

DROP TABLE IF EXISTS audit_changes;
DROP TRIGGER IF EXISTS tasks_return_chain;
DROP TRIGGER IF EXISTS sessions_return_chain;
DROP TRIGGER IF EXISTS tasks_purge_chain;

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

DROP TRIGGER IF EXISTS sessions_purge_chain;

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

DROP TRIGGER IF EXISTS audit_chains_purge;
DROP TRIGGER IF EXISTS audit_chains_begin;
DROP TABLE IF EXISTS audit_entries;

-- Chains whose last step was a purge end with the link again.
UPDATE audit_chains
SET
    last = substr(last, 1, instr(last || ';', ';') - 1),
    base = substr(base, 1, instr(base || ';', ';') - 1)
WHERE purged_at IS NOT NULL;
