-- 0001-create-repositories: the upstreams that worktrees are checked out from.
--
-- Why:      worktrees and debug sessions belong to a repository.
-- Locks:    none (new table).
-- Rollback: drops the table; repositories must be registered again.
--
-- depends:

CREATE TABLE IF NOT EXISTS repositories (
    -- Upstream repositories that worktrees are checked out from.
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    remote_url TEXT NOT NULL,
    default_branch TEXT NOT NULL DEFAULT 'main',
    -- What the service's user wants to keep with it, an object.
    metadata TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT repositories_id_check CHECK (length(id) = 36),
    CONSTRAINT repositories_name_check CHECK (length(name) > 0),
    CONSTRAINT repositories_metadata_check CHECK (json_valid(metadata) AND json_type(metadata) = 'object'),
    CONSTRAINT repositories_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT repositories_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS repositories_updated_at_given
AFTER UPDATE OF updated_at ON repositories FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE repositories
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS repositories_updated_at
AFTER UPDATE ON repositories FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE repositories
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;
