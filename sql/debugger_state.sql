-- debugger_state: checkpoints of a debugger, taken while its session is active.

-- name: checkpoint_session(id, session_id, label, state, created_at)<!
-- Append a checkpoint to its session. No row: the session has ended, or does not exist.
-- Needs: one writer, or two would number alike, and the session may end meanwhile.
INSERT INTO debugger_state (id, session_id, sequence, label, state, created_at)
SELECT
    :id,
    s.id,
    (
        SELECT coalesce(max(d.sequence), 0) + 1
        FROM debugger_state AS d
        WHERE d.session_id = s.id
    ),
    :label,
    :state,
    :created_at
FROM sessions AS s
WHERE
    s.id = :session_id
    AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
RETURNING *;

-- name: get_checkpoint(id)^
-- No row: there is no such checkpoint.
SELECT *
FROM debugger_state
WHERE id = :id;

-- name: latest_checkpoint(session_id)^
-- No row: the session has none.
SELECT *
FROM debugger_state
WHERE session_id = :session_id
ORDER BY sequence DESC
LIMIT 1;

-- name: list_checkpoints_by_session(session_id, after, limit)
-- A page of a session's checkpoints, oldest first.
SELECT *
FROM debugger_state
WHERE session_id = :session_id AND sequence > :after
ORDER BY sequence
LIMIT :limit;
