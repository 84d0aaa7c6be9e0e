-- 0006-create-project-locks: one session at a time works in a project.
--
-- Why:      two workflows in one folder would overwrite each other's files.
-- Locks:    none (new table).
-- Rollback: drops the table with the locks that are held; no session may work while this runs.
--
-- depends: 0005-create-sessions

CREATE TABLE IF NOT EXISTS project_locks (
    -- Who has a project to itself. A free project has no row, or one that has expired.
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    -- The session that holds the lock.
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    acquired_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    expires_at TEXT NOT NULL,
    -- Grows with every holder: a write that names an older one is refused.
    fencing_number INTEGER NOT NULL,
    CONSTRAINT project_locks_id_check CHECK (length(id) = 36),
    CONSTRAINT project_locks_acquired_at_check CHECK (acquired_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT project_locks_expires_at_check CHECK (
        expires_at GLOB '????-??-??T??:??:??.???Z' AND expires_at > acquired_at
    ),
    CONSTRAINT project_locks_fencing_number_check CHECK (fencing_number >= 0)
) STRICT;

CREATE UNIQUE INDEX IF NOT EXISTS ix_project_locks_project_id
ON project_locks (project_id);

CREATE INDEX IF NOT EXISTS ix_project_locks_session_id
ON project_locks (session_id);

CREATE INDEX IF NOT EXISTS ix_project_locks_expires_at
ON project_locks (expires_at, id);

CREATE TRIGGER IF NOT EXISTS project_locks_fencing_number_grows
BEFORE UPDATE OF fencing_number ON project_locks FOR EACH ROW
WHEN new.fencing_number < old.fencing_number
BEGIN
    SELECT raise(ABORT, 'project_locks.fencing_number only grows');
END;

CREATE TRIGGER IF NOT EXISTS project_locks_keep_fence
AFTER DELETE ON project_locks FOR EACH ROW
BEGIN
    UPDATE fencing_floors
    SET number = old.fencing_number
    WHERE resource = 'project_locks' AND number < old.fencing_number;
END;
