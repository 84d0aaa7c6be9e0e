-- 0026-create-workflows: what tasks are put together to.
--
-- Why:      an orchestrator runs tasks in an order, and shows how far it has come.
-- Locks:    none (new table).
-- Rollback: drops the table; all workflows are lost, their tasks stay.
--
-- depends: 0025-create-tasks

CREATE TABLE IF NOT EXISTS workflows (
    -- Workflows: a definition, and tasks in an order.
    id TEXT NOT NULL PRIMARY KEY,
    -- What people call it; several may share a name, say the versions of one.
    name TEXT NOT NULL,
    description TEXT,
    -- What it is made from, an object.
    definition TEXT NOT NULL,
    -- An archived workflow takes no more tasks.
    status TEXT NOT NULL DEFAULT 'draft',
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT workflows_id_check CHECK (length(id) = 36),
    CONSTRAINT workflows_name_check CHECK (length(name) > 0),
    CONSTRAINT workflows_definition_check CHECK (
        json_valid(definition) AND json_type(definition) = 'object'
    ),
    CONSTRAINT workflows_status_check CHECK (
        status IN ('draft', 'active', 'archived', 'paused')
    ),
    CONSTRAINT workflows_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT workflows_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS idx_workflows_status
ON workflows (status, created_at, id);

CREATE INDEX IF NOT EXISTS idx_workflows_created
ON workflows (created_at, id);

CREATE INDEX IF NOT EXISTS idx_workflows_name
ON workflows (name, created_at, id);

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS workflows_updated_at_given
AFTER UPDATE OF updated_at ON workflows FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE workflows
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS workflows_updated_at
AFTER UPDATE ON workflows FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE workflows
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;
