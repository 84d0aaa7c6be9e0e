-- steps: what a session does, one after the other.

-- name: create_step(id, session_id, name, input)<!
-- Append a planned step to its session.
-- No row: the session has ended, or there is none.
-- Needs: one writer, or two would number alike, and the session may end meanwhile.
INSERT INTO steps (id, session_id, name, sequence, input)
SELECT
    :id,
    s.id,
    :name,
    (
        SELECT coalesce(max(p.sequence), 0) + 1
        FROM steps AS p
        WHERE p.session_id = s.id
    ),
    :input
FROM sessions AS s
WHERE
    s.id = :session_id
    AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
RETURNING *;

-- name: create_step_at(id, session_id, name, sequence, input)<!
-- Plan a step at a place of the caller's choice, which must be free.
-- No row: the session has ended, or there is none.
-- Needs: one writer, or the session may end meanwhile.
INSERT INTO steps (id, session_id, name, sequence, input)
SELECT
    :id,
    s.id,
    :name,
    :sequence,
    :input
FROM sessions AS s
WHERE
    s.id = :session_id
    AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
RETURNING *;

-- name: get_step(id)^
-- No row: there is no such step.
SELECT *
FROM steps
WHERE id = :id;

-- name: start_step(id, now)<!
-- Begin. No row: it is not pending, or its session has ended.
-- Needs: one writer, or the session may end meanwhile.
UPDATE steps
SET
    status = 'running',
    started_at = :now
WHERE
    id = :id
    AND status = 'pending'
    AND EXISTS (
        SELECT 1
        FROM sessions AS s
        WHERE
            s.id = steps.session_id
            AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
    )
RETURNING *;

-- name: complete_step(id, output, now)<!
-- End well. No row: it is not running.
UPDATE steps
SET
    status = 'completed',
    output = :output,
    completed_at = :now
WHERE id = :id AND status = 'running'
RETURNING *;

-- name: fail_step(id, error_message, now)<!
-- End badly. No row: it has ended already.
UPDATE steps
SET
    status = 'failed',
    error_message = :error_message,
    completed_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'running')
RETURNING *;

-- name: skip_step(id, now)<!
-- Leave it out. No row: it is not pending.
UPDATE steps
SET
    status = 'skipped',
    completed_at = :now
WHERE id = :id AND status = 'pending'
RETURNING *;

-- name: list_steps_by_session(session_id, after, limit)
-- A page of a session's steps, in their order.
SELECT *
FROM steps
WHERE session_id = :session_id AND sequence > :after
ORDER BY sequence
LIMIT :limit;
