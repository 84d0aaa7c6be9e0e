-- client_sessions: who is connected, and when each was last heard from.
-- A session is open while is_active is true; a closed one stays closed, the client opens another.

-- name: open_client_session(id, client_id, user_id, connection_type, metadata, created_at)<!
-- A client connects: that is its first heartbeat.
INSERT INTO client_sessions (
    id,
    client_id,
    user_id,
    connection_type,
    is_active,
    metadata,
    created_at,
    updated_at,
    last_heartbeat
)
VALUES (
    :id,
    :client_id,
    :user_id,
    :connection_type,
    TRUE,
    :metadata,
    :created_at,
    :created_at,
    :created_at
)
RETURNING *;

-- name: beat_client_session(id, now, beaten_before)<!
-- Note that a client was heard from, unless that was noted a moment ago. A heartbeat of the future is
-- of a clock that has jumped back since, and does not count.
-- No row: it was noted, or the session is closed or gone.
UPDATE client_sessions
SET
    last_heartbeat = :now,
    updated_at = :now
WHERE id = :id AND is_active = TRUE AND (last_heartbeat <= :beaten_before OR last_heartbeat > :now)
RETURNING *;

-- name: close_client_session(id, updated_at)<!
-- No row: the session is closed already, or gone.
UPDATE client_sessions
SET
    is_active = FALSE,
    updated_at = :updated_at
WHERE id = :id AND is_active = TRUE
RETURNING *;

-- name: close_stale_client_sessions(beaten_before, latest_credible_beat, now, limit)<!
-- Close sessions that have not been heard from since, a piece at a time. A heartbeat further ahead than
-- clocks may differ is not believed, or a clock that was ahead would keep its clients connected for ever.
-- A heartbeat that arrives first wins: its row no longer meets the condition. No row: none is left.
UPDATE client_sessions
SET
    is_active = FALSE,
    updated_at = :now
WHERE
    id IN (
        SELECT s.id
        FROM client_sessions AS s
        WHERE
            s.is_active = TRUE
            AND (s.last_heartbeat < :beaten_before OR s.last_heartbeat > :latest_credible_beat)
        LIMIT :limit -- noqa: AM09
    )
RETURNING id;

-- name: get_client_session(id)^
-- No row: there is no such session.
SELECT *
FROM client_sessions
WHERE id = :id;

-- name: list_active_client_sessions(after_id, limit)
-- A page of the open sessions, in the order in which they were opened.
SELECT *
FROM client_sessions
WHERE is_active = TRUE AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_client_sessions_by_client(client_id, after_id, limit)
-- A page of one client's sessions, open or closed, in the order in which they were opened.
SELECT *
FROM client_sessions
WHERE client_id = :client_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_client_sessions_by_user(user_id, after_id, limit)
-- A page of one user's sessions, open or closed, in the order in which they were opened.
SELECT *
FROM client_sessions
WHERE user_id = :user_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: delete_client_session(id)<!
-- No row: there was no such session.
DELETE FROM client_sessions
WHERE id = :id
RETURNING *;
