-- steps: what a session does, one after the other.

-- name: create_step(id, session_id, name, input)<!
-- Plan a step behind the last one of its session.
INSERT INTO steps (id, session_id, name, sequence, input)
SELECT
    :id,
    :session_id,
    :name,
    coalesce(max(s.sequence), 0) + 1,
    :input
FROM steps AS s
WHERE s.session_id = :session_id
RETURNING
    id,
    session_id,
    name,
    sequence,
    status,
    input,
    output,
    error_message,
    started_at,
    completed_at;

-- name: create_step_at(id, session_id, name, sequence, input)<!
-- Plan a step at a place of the caller's choice, which must be free.
INSERT INTO steps (id, session_id, name, sequence, input)
VALUES (:id, :session_id, :name, :sequence, :input)
RETURNING
    id,
    session_id,
    name,
    sequence,
    status,
    input,
    output,
    error_message,
    started_at,
    completed_at;

-- name: get_step(id)^
-- No row: there is no such step.
SELECT
    id,
    session_id,
    name,
    sequence,
    status,
    input,
    output,
    error_message,
    started_at,
    completed_at
FROM steps
WHERE id = :id;

-- name: start_step(id, now)<!
-- Begin. No row: it is not pending.
UPDATE steps
SET
    status = 'running',
    started_at = :now
WHERE id = :id AND status = 'pending'
RETURNING
    id,
    session_id,
    name,
    sequence,
    status,
    input,
    output,
    error_message,
    started_at,
    completed_at;

-- name: complete_step(id, output, now)<!
-- End well. No row: it is not running.
UPDATE steps
SET
    status = 'completed',
    output = :output,
    completed_at = :now
WHERE id = :id AND status = 'running'
RETURNING
    id,
    session_id,
    name,
    sequence,
    status,
    input,
    output,
    error_message,
    started_at,
    completed_at;

-- name: fail_step(id, error_message, now)<!
-- End badly. No row: it has ended already.
UPDATE steps
SET
    status = 'failed',
    error_message = :error_message,
    completed_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'running')
RETURNING
    id,
    session_id,
    name,
    sequence,
    status,
    input,
    output,
    error_message,
    started_at,
    completed_at;

-- name: skip_step(id, now)<!
-- Leave it out. No row: it is not pending.
UPDATE steps
SET
    status = 'skipped',
    completed_at = :now
WHERE id = :id AND status = 'pending'
RETURNING
    id,
    session_id,
    name,
    sequence,
    status,
    input,
    output,
    error_message,
    started_at,
    completed_at;

-- name: list_steps_by_session(session_id, after, limit)
-- A page of a session's steps, in their order.
SELECT
    id,
    session_id,
    name,
    sequence,
    status,
    input,
    output,
    error_message,
    started_at,
    completed_at
FROM steps
WHERE session_id = :session_id AND sequence > :after
ORDER BY sequence
LIMIT :limit;
