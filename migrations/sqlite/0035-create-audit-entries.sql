-- 0035-create-audit-entries: purges as links of their chains, and checkpoints over every chain's whole state.
--
-- Why:      what a checkpoint did not cover could be rewritten under it: how many rows are from before the
--           chains, what was purged and when, the number of chains, the schema.
-- Locks:    reads all chains once. Checkpoints taken before are dropped: take one afterwards.
-- Rollback: drops the entries and checkpoints; the chains stay.
--
-- depends: 0034-distrust-future-times-in-views

CREATE TABLE IF NOT EXISTS audit_entries (
    -- What happened to chains other than growing, in its order. Rows are only ever added.

    -- Without gaps. AUTOINCREMENT, so that a removed entry leaves one.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    -- 'start': here the entries begin, once. 'chain': a chain began. 'purge': its first links went.
    -- 'stub': they went before there were entries. 'return': a session or task that had been deleted was
    -- created again under its id.
    kind TEXT NOT NULL,
    resource TEXT NOT NULL,
    -- The session or the task; empty for 'start'.
    resource_id TEXT NOT NULL,
    -- How many rows without a hash the chain had.
    unchained INTEGER NOT NULL DEFAULT 0,
    -- How many links the chain had; for 'start' the last position at which an event may lack a hash.
    length INTEGER NOT NULL DEFAULT 0,
    -- How many of them were gone.
    purged INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT audit_entries_kind_check CHECK (kind IN ('start', 'chain', 'purge', 'stub', 'return')),
    CONSTRAINT audit_entries_resource_check CHECK (resource IN ('events', 'tool_executions')),
    CONSTRAINT audit_entries_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_audit_entries_resource
ON audit_entries (resource, resource_id);

INSERT INTO audit_entries (kind, resource, resource_id, length)
SELECT
    'start' AS kind,
    'events' AS resource,
    '' AS resource_id,
    coalesce(max(e.position), 0) AS length
FROM events AS e
WHERE e.hash IS NULL AND NOT EXISTS (SELECT 1 FROM audit_entries)
HAVING NOT EXISTS (SELECT 1 FROM audit_entries);

INSERT INTO audit_entries (kind, resource, resource_id, unchained, length)
SELECT
    'chain' AS kind,
    c.resource,
    c.resource_id,
    c.unchained,
    c.length
FROM audit_chains AS c
WHERE
    NOT EXISTS (
        SELECT 1 FROM audit_entries AS a
        WHERE a.kind = 'chain'
    )
ORDER BY c.resource, c.resource_id;

INSERT INTO audit_entries (kind, resource, resource_id, unchained, length, purged, created_at)
SELECT
    'stub' AS kind,
    c.resource,
    c.resource_id,
    c.unchained,
    c.purged AS length,
    c.purged,
    c.purged_at
FROM audit_chains AS c
WHERE
    c.purged_at IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM audit_entries AS a
        WHERE a.kind = 'stub'
    )
ORDER BY c.resource, c.resource_id;

INSERT INTO audit_entries (kind, resource, resource_id, unchained, length, purged)
SELECT
    'return' AS kind,
    c.resource,
    c.resource_id,
    c.unchained,
    c.length,
    c.purged
FROM audit_chains AS c
WHERE
    c.purged_at IS NOT NULL
    AND (
        EXISTS (
            SELECT 1 FROM sessions AS s
            WHERE c.resource = 'events' AND s.id = c.resource_id
        )
        OR EXISTS (
            SELECT 1 FROM tasks AS t
            WHERE c.resource = 'tool_executions' AND t.id = c.resource_id
        )
    )
    AND NOT EXISTS (
        SELECT 1 FROM audit_entries AS a
        WHERE a.kind = 'return'
    )
ORDER BY c.resource, c.resource_id;

CREATE TRIGGER IF NOT EXISTS audit_entries_no_update
BEFORE UPDATE ON audit_entries FOR EACH ROW
BEGIN
    SELECT raise(ABORT, 'audit entries are history: they are not updated');
END;

CREATE TRIGGER IF NOT EXISTS audit_entries_no_delete
BEFORE DELETE ON audit_entries FOR EACH ROW
BEGIN
    SELECT raise(ABORT, 'audit entries are history: they are not deleted');
END;

-- An append updates the chain's row and fires none of the triggers below, except for the first of a chain.
CREATE TRIGGER IF NOT EXISTS audit_chains_begin
AFTER INSERT ON audit_chains FOR EACH ROW
BEGIN
    INSERT INTO audit_entries (kind, resource, resource_id, unchained, length)
    VALUES ('chain', new.resource, new.resource_id, new.unchained, new.length);
END;

-- What the next link follows names the purge, so that its hash covers how many links went, up to which, and
-- when. A further piece of the same purge replaces what the piece before it wrote there.
CREATE TRIGGER IF NOT EXISTS audit_chains_purge
AFTER UPDATE OF purged ON audit_chains FOR EACH ROW
BEGIN
    INSERT INTO audit_entries (kind, resource, resource_id, unchained, length, purged, created_at)
    VALUES (
        'purge',
        new.resource,
        new.resource_id,
        new.unchained,
        new.length,
        new.purged,
        coalesce(new.purged_at, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    );
    UPDATE audit_chains
    SET
        last = substr(new.last, 1, instr(new.last || ';', ';') - 1)
        || ';purged=' || new.purged || ';at=' || coalesce(new.purged_at, '')
    WHERE resource = new.resource AND resource_id = new.resource_id;
END;

DROP TRIGGER IF EXISTS sessions_purge_chain;

CREATE TRIGGER IF NOT EXISTS sessions_purge_chain
AFTER DELETE ON sessions FOR EACH ROW
BEGIN
    UPDATE audit_chains
    SET
        unchained = 0,
        purged = length,
        base = substr(last, 1, instr(last || ';', ';') - 1),
        purged_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE resource = 'events' AND resource_id = old.id;
END;

DROP TRIGGER IF EXISTS tasks_purge_chain;

CREATE TRIGGER IF NOT EXISTS tasks_purge_chain
AFTER DELETE ON tasks FOR EACH ROW
BEGIN
    UPDATE audit_chains
    SET
        unchained = 0,
        purged = length,
        base = substr(last, 1, instr(last || ';', ';') - 1),
        purged_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE resource = 'tool_executions' AND resource_id = old.id;
END;

CREATE TRIGGER IF NOT EXISTS sessions_return_chain
AFTER INSERT ON sessions FOR EACH ROW
BEGIN
    INSERT INTO audit_entries (kind, resource, resource_id, unchained, length, purged)
    SELECT
        'return' AS kind,
        c.resource,
        c.resource_id,
        c.unchained,
        c.length,
        c.purged
    FROM audit_chains AS c
    WHERE c.resource = 'events' AND c.resource_id = new.id;
END;

CREATE TRIGGER IF NOT EXISTS tasks_return_chain
AFTER INSERT ON tasks FOR EACH ROW
BEGIN
    INSERT INTO audit_entries (kind, resource, resource_id, unchained, length, purged)
    SELECT
        'return' AS kind,
        c.resource,
        c.resource_id,
        c.unchained,
        c.length,
        c.purged
    FROM audit_chains AS c
    WHERE c.resource = 'tool_executions' AND c.resource_id = new.id;
END;

CREATE TABLE IF NOT EXISTS audit_changes (
    -- Tasks whose chain has grown since the last checkpoint. Events need none of this: their position tells.
    task_id TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

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
    INSERT INTO audit_changes (task_id) VALUES (new.task_id)
    ON CONFLICT (task_id) DO NOTHING;
END;

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
    INSERT INTO audit_changes (task_id) VALUES (new.task_id)
    ON CONFLICT (task_id) DO NOTHING;
END;

DROP TABLE IF EXISTS audit_checkpoints;

CREATE TABLE IF NOT EXISTS audit_checkpoints (
    -- Checkpoints of history. The digest covers all the other columns but the signature, and through `previous`
    -- every checkpoint there was; it is kept outside.
    number INTEGER NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    -- The digest of the checkpoint before; empty for the first.
    previous TEXT NOT NULL,
    -- Which rows of audit_heads are this checkpoint's.
    run TEXT NOT NULL UNIQUE,
    -- The last position and the last of audit_entries when it began.
    position INTEGER NOT NULL,
    entry INTEGER NOT NULL,
    -- How many chains there are, and how many links they ever had.
    chains INTEGER NOT NULL,
    links INTEGER NOT NULL,
    -- How many chains it notes, and the hash of their states.
    heads INTEGER NOT NULL,
    heads_hash TEXT NOT NULL,
    -- The hash of the entries since the checkpoint before, and of the schema.
    entries_hash TEXT NOT NULL,
    schema_hash TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- Ed25519 over the digest and the public key of the next signature; NULL if it is not signed.
    next_key TEXT,
    signature TEXT,
    CONSTRAINT audit_checkpoints_number_check CHECK (number > 0),
    CONSTRAINT audit_checkpoints_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE TABLE IF NOT EXISTS audit_heads (
    -- The state of each chain that had changed since the checkpoint before. Rows of a run that has no
    -- checkpoint are those of one under way, or of one that died.
    run TEXT NOT NULL,
    resource TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    -- The checkpoint that the run was to make.
    number INTEGER NOT NULL,
    -- As in audit_chains.
    unchained INTEGER NOT NULL,
    length INTEGER NOT NULL,
    last TEXT NOT NULL,
    purged INTEGER NOT NULL,
    base TEXT NOT NULL,
    purged_at TEXT,
    PRIMARY KEY (run, resource, resource_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS ix_audit_heads_resource
ON audit_heads (resource, resource_id, number);
