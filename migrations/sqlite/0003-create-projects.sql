-- 0003-create-projects: the project folders that workflow sessions run in.
--
-- Why:      sessions and locks of a project belong together, whoever started them.
-- Locks:    none (new table).
-- Rollback: drops the table; projects register themselves again with their next session.
--
-- depends: 0002-create-worktrees

CREATE TABLE IF NOT EXISTS projects (
    -- Folders that workflow sessions run in, registered by the first session of each.
    id TEXT NOT NULL PRIMARY KEY,
    -- The canonical path, by which sessions refer to their project.
    path TEXT NOT NULL,
    -- What people call it.
    name TEXT,
    -- Settings of the project, an object.
    config TEXT NOT NULL DEFAULT '{}',
    -- When the project was first seen.
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- When something last happened in it.
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT projects_id_check CHECK (length(id) = 36),
    CONSTRAINT projects_path_check CHECK (length(path) > 0),
    CONSTRAINT projects_name_check CHECK (length(name) <= 255),
    CONSTRAINT projects_config_check CHECK (json_valid(config) AND json_type(config) = 'object'),
    CONSTRAINT projects_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT projects_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE UNIQUE INDEX IF NOT EXISTS ix_projects_path
ON projects (path);

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS projects_updated_at_given
AFTER UPDATE OF updated_at ON projects FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE projects
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS projects_updated_at
AFTER UPDATE ON projects FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE projects
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;
