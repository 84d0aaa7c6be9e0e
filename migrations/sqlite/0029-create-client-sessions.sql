-- 0029-create-client-sessions: who is connected, and who was heard of when.
--
-- Why:      an orchestrator must know which of its clients are still there.
-- Locks:    none (new table).
-- Rollback: drops the table; clients must connect again.
--
-- depends: 0028-create-tool-executions

CREATE TABLE IF NOT EXISTS client_sessions (
    -- Connections of clients, the closed ones too until they are deleted.
    id TEXT NOT NULL PRIMARY KEY,
    -- Who is connected, in its own words: not unique, a client may connect twice.
    client_id TEXT NOT NULL,
    -- NULL: nobody is logged in.
    user_id TEXT,
    connection_type TEXT NOT NULL,
    is_active INTEGER NOT NULL DEFAULT 1,
    metadata TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- Written at most once per interval.
    last_heartbeat TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT client_sessions_id_check CHECK (length(id) = 36),
    CONSTRAINT client_sessions_client_id_check CHECK (length(client_id) > 0),
    CONSTRAINT client_sessions_connection_type_check CHECK (
        connection_type = 'websocket'
        OR connection_type = 'http'
        OR connection_type = 'grpc'
    ),
    CONSTRAINT client_sessions_is_active_check CHECK (is_active = 0 OR is_active = 1),
    CONSTRAINT client_sessions_metadata_check CHECK (
        metadata IS NULL OR (json_valid(metadata) AND json_type(metadata) = 'object')
    ),
    CONSTRAINT client_sessions_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT client_sessions_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT client_sessions_last_heartbeat_check CHECK (last_heartbeat GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS idx_client_sessions_client
ON client_sessions (client_id, id);

CREATE INDEX IF NOT EXISTS idx_client_sessions_user
ON client_sessions (user_id, id)
WHERE user_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS idx_client_sessions_active
ON client_sessions (is_active, id);

-- Of the closed ones, which only grow in number, nobody asks when they were heard of.
CREATE INDEX IF NOT EXISTS idx_client_sessions_heartbeat
ON client_sessions (is_active, last_heartbeat);

CREATE INDEX IF NOT EXISTS idx_client_sessions_created
ON client_sessions (created_at);

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS client_sessions_updated_at_given
AFTER UPDATE OF updated_at ON client_sessions FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE client_sessions
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS client_sessions_updated_at
AFTER UPDATE ON client_sessions FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE client_sessions
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;
