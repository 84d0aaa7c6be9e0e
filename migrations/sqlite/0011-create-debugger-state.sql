-- 0011-create-debugger-state: checkpoints of debuggers.
--
-- Why:      a debug session that was interrupted goes on from its last checkpoint.
-- Locks:    none (new table).
-- Rollback: drops the table; the checkpoints of all sessions are lost.
--
-- depends: 0010-create-artifacts

CREATE TABLE IF NOT EXISTS debugger_state (
    -- Checkpoints of a session's debugger, in the order of sequence; the last one counts.
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- The place within the session, each taken once.
    sequence INTEGER NOT NULL,
    -- What people call the checkpoint.
    label TEXT,
    -- Whatever the debugger needs to go on.
    state TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    UNIQUE (session_id, sequence),
    CONSTRAINT debugger_state_id_check CHECK (length(id) = 36),
    CONSTRAINT debugger_state_sequence_check CHECK (sequence >= 0),
    CONSTRAINT debugger_state_state_check CHECK (json_valid(state)),
    CONSTRAINT debugger_state_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- A session that does not exist is left to the foreign key, which names the fault.
CREATE TRIGGER IF NOT EXISTS debugger_state_active_session
BEFORE INSERT ON debugger_state FOR EACH ROW
WHEN
    EXISTS (
        SELECT 1
        FROM sessions
        WHERE id = new.session_id AND status NOT IN ('pending', 'in_progress', 'paused')
    )
BEGIN
    SELECT raise(ABORT, 'debugger_state: the session is not active');
END;
