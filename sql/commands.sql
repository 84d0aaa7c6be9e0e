-- commands: what a session was asked to run, and how it ended.

-- name: create_command(id, session_id, argv, working_directory, log_path, created_at)<!
-- Append a command to its session.
-- No row: the session has ended, or there is none.
-- Needs: one writer, or two would number alike, and the session may end meanwhile.
INSERT INTO commands (id, session_id, sequence, argv, working_directory, log_path, created_at)
SELECT
    :id,
    s.id,
    (
        SELECT coalesce(max(c.sequence), 0) + 1
        FROM commands AS c
        WHERE c.session_id = s.id
    ),
    :argv,
    :working_directory,
    :log_path,
    :created_at
FROM sessions AS s
WHERE
    s.id = :session_id
    AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
RETURNING *;

-- name: get_command(id)^
-- No row: there is no such command.
SELECT *
FROM commands
WHERE id = :id;

-- name: start_command(id, log_path, now)<!
-- Begin. No row: it is not pending, or its session has ended.
-- Needs: one writer, or the session may end meanwhile.
UPDATE commands
SET
    status = 'running',
    log_path = coalesce(:log_path, log_path),
    started_at = :now
WHERE
    id = :id
    AND status = 'pending'
    AND EXISTS (
        SELECT 1
        FROM sessions AS s
        WHERE
            s.id = commands.session_id
            AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
    )
RETURNING *;

-- name: finish_command(id, exit_code, now)<!
-- It ended by itself; 0 is success. No row: it is not running.
UPDATE commands
SET
    status = CASE WHEN :exit_code = 0 THEN 'completed' ELSE 'failed' END,
    exit_code = :exit_code,
    completed_at = :now
WHERE id = :id AND status = 'running'
RETURNING *;

-- name: fail_command(id, error_message, now)<!
-- It could not run, or its end was not seen. No row: it has ended already.
UPDATE commands
SET
    status = 'failed',
    error_message = :error_message,
    completed_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'running')
RETURNING *;

-- name: time_out_command(id, error_message, now)<!
-- It was ended for taking too long. No row: it is not running.
UPDATE commands
SET
    status = 'timeout',
    error_message = :error_message,
    completed_at = :now
WHERE id = :id AND status = 'running'
RETURNING *;

-- name: cancel_command(id, now)<!
-- It was cancelled. No row: it has ended already.
UPDATE commands
SET
    status = 'cancelled',
    completed_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'running')
RETURNING *;

-- name: list_commands_by_session(session_id, after, limit)
-- A page of a session's commands, in their order.
SELECT *
FROM commands
WHERE session_id = :session_id AND sequence > :after
ORDER BY sequence
LIMIT :limit;
