-- 0005-create-sessions: what the service executes, and how far it has come.
--
-- Why:      steps, events, commands, artifacts and checkpoints all belong to a session.
-- Locks:    none (new table).
-- Rollback: drops the table; the history of all sessions is lost.
--
-- depends: 0004-create-auth-tokens

CREATE TABLE IF NOT EXISTS sessions (
    -- Execution sessions: debug sessions on a repository, and workflows on a project.
    id TEXT NOT NULL PRIMARY KEY,
    session_type TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    -- How much the session does by itself.
    mode TEXT NOT NULL DEFAULT 'interactive',
    -- The project of a workflow, whose history it preserves: a project with sessions is not deleted.
    project_path TEXT REFERENCES projects (path) ON UPDATE CASCADE ON DELETE RESTRICT,
    -- The repository of a debug session.
    repository_id TEXT REFERENCES repositories (id) ON DELETE RESTRICT,
    -- The worktree it runs in, where it runs in one.
    worktree_id TEXT REFERENCES worktrees (id) ON DELETE SET NULL,
    -- The token that opened it.
    auth_token_id TEXT REFERENCES auth_tokens (id) ON DELETE SET NULL,
    -- What was asked for, an object.
    config TEXT NOT NULL DEFAULT '{}',
    -- What came of it.
    result TEXT,
    -- Context that the client gave, an object.
    metadata TEXT NOT NULL DEFAULT '{}',
    -- Why it failed.
    error_message TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- When it ended, well or not.
    completed_at TEXT,
    CONSTRAINT sessions_id_check CHECK (length(id) = 36),
    CONSTRAINT sessions_session_type_check CHECK (
        session_type = 'debug'
        OR session_type = 'maven_maintenance'
        OR session_type = 'test_generation'
        OR session_type = 'docker_deployment'
    ),
    CONSTRAINT sessions_status_check CHECK (
        status = 'pending'
        OR status = 'in_progress'
        OR status = 'paused'
        OR status = 'completed'
        OR status = 'failed'
        OR status = 'cancelled'
    ),
    CONSTRAINT sessions_mode_check CHECK (
        mode = 'interactive'
        OR mode = 'autonomous'
        OR mode = 'analysis_only'
        OR mode = 'debug'
    ),
    CONSTRAINT sessions_debug_needs_repository CHECK (session_type <> 'debug' OR repository_id IS NOT NULL),
    CONSTRAINT sessions_workflow_needs_project CHECK (session_type = 'debug' OR project_path IS NOT NULL),
    CONSTRAINT sessions_config_check CHECK (json_valid(config) AND json_type(config) = 'object'),
    CONSTRAINT sessions_result_check CHECK (result IS NULL OR json_valid(result)),
    CONSTRAINT sessions_metadata_check CHECK (json_valid(metadata) AND json_type(metadata) = 'object'),
    CONSTRAINT sessions_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT sessions_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT sessions_completed_at_check CHECK (completed_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_sessions_status
ON sessions (status);

-- A page of a status, the newest first.
CREATE INDEX IF NOT EXISTS ix_sessions_status_created
ON sessions (status, created_at DESC, id DESC);

-- A page of a project, without a sort for the tie-break.
CREATE INDEX IF NOT EXISTS ix_sessions_project_path
ON sessions (project_path, created_at, id);

-- The newest sessions, and those that the purge takes.
CREATE INDEX IF NOT EXISTS ix_sessions_created_at
ON sessions (created_at, id);

-- The sessions at work are few among all that ever were.
CREATE INDEX IF NOT EXISTS ix_sessions_active
ON sessions (id)
WHERE status IN ('pending', 'in_progress');

CREATE INDEX IF NOT EXISTS ix_sessions_repository_id
ON sessions (repository_id)
WHERE repository_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_sessions_worktree_id
ON sessions (worktree_id)
WHERE worktree_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_sessions_auth_token_id
ON sessions (auth_token_id)
WHERE auth_token_id IS NOT NULL;

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS sessions_updated_at_given
AFTER UPDATE OF updated_at ON sessions FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE sessions
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS sessions_updated_at
AFTER UPDATE ON sessions FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE sessions
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;
