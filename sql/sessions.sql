-- sessions: what was executed, for whom, and what came of it.
-- status is a state machine: each verb is an UPDATE on the statuses that allow it.

-- name: touch_project(project_id, path, now)!
-- A session registers the project it works on, or touches it: goes with create_session.
INSERT INTO projects (id, path, created_at, updated_at)
VALUES (:project_id, :path, :now, :now)
ON CONFLICT (path)
DO UPDATE SET updated_at = excluded.updated_at;

-- name: create_session(id, session_type, mode, project_path, repository_id, worktree_id, auth_token_id, config, metadata, created_at)<!
-- Open a session, pending.
-- No row: its token is revoked or has expired, or its worktree is retired. One that does not exist is left
-- to the foreign key.
INSERT INTO sessions (
    id,
    session_type,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    metadata,
    created_at,
    updated_at
)
SELECT
    :id,
    :session_type,
    :mode,
    :project_path,
    :repository_id,
    :worktree_id,
    :auth_token_id,
    :config,
    :metadata,
    :created_at,
    :created_at
WHERE
    NOT EXISTS (
        SELECT 1
        FROM auth_tokens AS t
        WHERE t.id = :auth_token_id AND (t.revoked_at IS NOT NULL OR t.expires_at <= :created_at)
    )
    AND NOT EXISTS (
        SELECT 1
        FROM worktrees AS w
        WHERE w.id = :worktree_id AND w.state = 'retired'
    )
RETURNING
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at;

-- name: get_session(id)^
-- No row: there is no such session.
SELECT
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at
FROM sessions
WHERE id = :id;

-- name: start_session(id, worktree_id, now)<!
-- Begin the work. No row: it is not pending, or its worktree is retired.
UPDATE sessions
SET
    status = 'in_progress',
    worktree_id = coalesce(:worktree_id, worktree_id),
    updated_at = :now
WHERE
    id = :id
    AND status = 'pending'
    AND NOT EXISTS (
        SELECT 1
        FROM worktrees AS w
        WHERE w.id = coalesce(:worktree_id, sessions.worktree_id) AND w.state = 'retired'
    )
RETURNING
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at;

-- name: pause_session(id, now)<!
-- Interrupt the work. No row: it is not in progress.
UPDATE sessions
SET
    status = 'paused',
    updated_at = :now
WHERE id = :id AND status = 'in_progress'
RETURNING
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at;

-- name: resume_session(id, now)<!
-- Go on with the work. No row: it is not paused.
UPDATE sessions
SET
    status = 'in_progress',
    updated_at = :now
WHERE id = :id AND status = 'paused'
RETURNING
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at;

-- name: complete_session(id, result, now)<!
-- End well. No row: it is not in progress.
UPDATE sessions
SET
    status = 'completed',
    result = :result,
    completed_at = :now,
    updated_at = :now
WHERE id = :id AND status = 'in_progress'
RETURNING
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at;

-- name: fail_session(id, error_message, now)<!
-- End badly. No row: it has ended already.
UPDATE sessions
SET
    status = 'failed',
    error_message = :error_message,
    completed_at = :now,
    updated_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'in_progress' OR status = 'paused')
RETURNING
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at;

-- name: cancel_session(id, now)<!
-- Call it off. No row: it has ended already.
UPDATE sessions
SET
    status = 'cancelled',
    completed_at = :now,
    updated_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'in_progress' OR status = 'paused')
RETURNING
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at;

-- name: list_sessions_by_status(status, created_at, after_id, limit)
-- A page of the sessions in one status, newest first.
SELECT
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at
FROM sessions
WHERE status = :status AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_sessions_by_project(project_path, created_at, after_id, limit)
-- A page of one project's sessions, newest first.
SELECT
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at
FROM sessions
WHERE project_path = :project_path AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_recent_sessions(created_at, after_id, limit)
-- A page of all sessions, newest first.
SELECT
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at
FROM sessions
WHERE (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_open_sessions_by_worktree(worktree_id)
-- The sessions in a worktree that have not ended: one, or a handful, and so in no order.
SELECT
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at
FROM sessions
WHERE worktree_id = :worktree_id AND status IN ('pending', 'in_progress', 'paused');

-- name: count_open_sessions_by_auth_token(auth_token_id)$
-- How many sessions that a token opened have not ended.
SELECT count(*)
FROM sessions
WHERE auth_token_id = :auth_token_id AND status IN ('pending', 'in_progress', 'paused');

-- name: delete_session(id)<!
-- Delete a session with all that belongs to it. No row: there is none.
DELETE FROM sessions
WHERE id = :id
RETURNING
    id,
    session_type,
    status,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    result,
    metadata,
    error_message,
    created_at,
    updated_at,
    completed_at;
