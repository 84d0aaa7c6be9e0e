-- events: what happened in a session, in the order in which it became visible.
-- position is that order and the cursor of every reader; SQLite gives each row the next one.
-- hash covers the event and the one it follows in its session, see audit_chains: a trigger moves the
-- chain's end on with each row.

-- name: append_events(id, session_id, event_type, level, message, context, created_at)*!
-- Many at once: all of them or none.
-- Needs: one writer, or two would follow the same link, and positions appear out of order.
INSERT INTO events (id, session_id, event_type, level, message, context, created_at, hash)
VALUES (
    :id,
    :session_id,
    :event_type,
    :level,
    :message,
    :context,
    :created_at,
    metastore_sha256(
        coalesce(
            (
                SELECT c.last FROM audit_chains AS c
                WHERE c.resource = 'events' AND c.resource_id = :session_id
            ),
            ''
        ),
        :id,
        :session_id,
        :event_type,
        :level,
        :message,
        :context,
        :created_at
    )
);

-- name: get_event(id)^
-- No row: there is no such event.
SELECT *
FROM events
WHERE id = :id;

-- name: list_events(after, limit)
-- A page of all events, oldest first.
SELECT *
FROM events
WHERE position > :after
ORDER BY position
LIMIT :limit;
