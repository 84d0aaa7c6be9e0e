-- events: the hot statements, on one index whatever the statistics say.
-- After an ANALYZE at a time when one session had nearly all events, SQLite would walk the table
-- from its end to find the events of another.

-- name: append_event(id, session_id, event_type, level, message, context, created_at)<!
-- Differs: one index, and no RETURNING: that, or a trigger on the table, makes SQLite copy every page
-- that the statement changes, which doubles its cost.
-- The hottest statement of all.
-- Before commit: audit_chains.note_event_chain(session_id)
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
                SELECT events.position || ':' || events.hash
                FROM events INDEXED BY ix_events_session_id -- noqa: PRS
                WHERE events.session_id = :session_id AND events.hash IS NOT NULL
                ORDER BY events.position DESC
                LIMIT 1
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

-- name: append_events(id, session_id, event_type, level, message, context, created_at)*!
-- Differs: one index.
-- Many at once: all of them or none.
-- Before commit: audit_chains.note_event_chain(session_id)
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
                SELECT events.position || ':' || events.hash
                FROM events INDEXED BY ix_events_session_id -- noqa: PRS
                WHERE events.session_id = :session_id AND events.hash IS NOT NULL
                ORDER BY events.position DESC
                LIMIT 1
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
-- Differs: one index.
-- A page of one session's events, oldest first.
SELECT
    position,
    id,
    session_id,
    event_type,
    level,
    message,
    context,
    created_at
FROM events INDEXED BY ix_events_session_id -- noqa: PRS
WHERE session_id = :session_id AND position > :after
ORDER BY position
LIMIT :limit;
