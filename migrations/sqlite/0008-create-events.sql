-- 0008-create-events: what happened, in the order in which it became visible.
--
-- Why:      people and programs follow a session while it runs, and read it up afterwards.
-- Locks:    none (new table).
-- Rollback: drops the table; the events of all sessions are lost, and positions start again:
--           a reader's cursor from before is worth nothing.
--
-- depends: 0007-create-steps

CREATE TABLE IF NOT EXISTS events (
    -- Events of sessions: history, which is read and never edited.

    -- The order in which events became visible, over all sessions: the cursor of every reader.
    -- AUTOINCREMENT, for a position must not come back after a purge.
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    event_type TEXT NOT NULL,
    level TEXT NOT NULL,
    message TEXT NOT NULL,
    -- What there is to know beyond the message, an object.
    context TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT events_id_check CHECK (length(id) = 36),
    CONSTRAINT events_event_type_check CHECK (length(event_type) <= 50),
    CONSTRAINT events_level_check CHECK (
        level = 'debug'
        OR level = 'info'
        OR level = 'warning'
        OR level = 'error'
    ),
    CONSTRAINT events_context_check CHECK (json_valid(context) AND json_type(context) = 'object'),
    CONSTRAINT events_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- SQLite ends every index with the rowid, which is position: this one gives a session's events in order.
CREATE INDEX IF NOT EXISTS ix_events_session_id
ON events (session_id);

CREATE INDEX IF NOT EXISTS ix_events_created_at
ON events (created_at);

CREATE TRIGGER IF NOT EXISTS events_no_update
BEFORE UPDATE ON events FOR EACH ROW
BEGIN
    SELECT raise(ABORT, 'events are history: they are not updated');
END;

-- In a cascade the session is gone before its events, so that it passes.
CREATE TRIGGER IF NOT EXISTS events_no_delete
BEFORE DELETE ON events FOR EACH ROW
WHEN
    EXISTS (
        SELECT 1 FROM sessions
        WHERE id = old.session_id
    )
BEGIN
    SELECT raise(ABORT, 'events are history: they go with their session only');
END;
