-- events: the statements that SQLite words in its own way.

-- name: append_event(id, session_id, event_type, level, message, context, created_at)<!
-- Differs: no RETURNING, which makes a fifth of its cost: SQLite tells the number of the row anyway.
-- The hottest statement of all.
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

-- name: list_events_by_session(session_id, after, limit)
-- Differs: after an ANALYZE at a time when one session had nearly all events, SQLite would walk the
-- table to find those of another.
-- A page of one session's events, oldest first.
SELECT *
FROM events INDEXED BY ix_events_session_id -- noqa: PRS
WHERE session_id = :session_id AND position > :after
ORDER BY position
LIMIT :limit;
