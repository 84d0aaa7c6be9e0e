-- 0007-create-steps: what a session does, in which order.
--
-- Why:      a workflow shows and resumes its work step by step.
-- Locks:    none (new table).
-- Rollback: drops the table; the steps of all sessions are lost.
--
-- depends: 0006-create-project-locks

CREATE TABLE IF NOT EXISTS steps (
    -- Steps of a session, in the order of sequence.
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- The place within the session, each taken once.
    sequence INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    input TEXT,
    output TEXT,
    -- Why it failed.
    error_message TEXT,
    started_at TEXT,
    completed_at TEXT,
    CONSTRAINT steps_id_check CHECK (length(id) = 36),
    CONSTRAINT steps_name_check CHECK (length(name) > 0 AND length(name) <= 100),
    CONSTRAINT steps_status_check CHECK (
        status = 'pending'
        OR status = 'running'
        OR status = 'completed'
        OR status = 'failed'
        OR status = 'skipped'
    ),
    CONSTRAINT steps_input_check CHECK (input IS NULL OR json_valid(input)),
    CONSTRAINT steps_output_check CHECK (output IS NULL OR json_valid(output)),
    CONSTRAINT steps_started_at_check CHECK (started_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT steps_completed_at_check CHECK (completed_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- The unique one finds, orders and cascades a session's steps. The narrow one repeats its first column:
-- it is there under this name for programs that know the table, and no statement of ours needs it.
CREATE INDEX IF NOT EXISTS ix_steps_session_id
ON steps (session_id);

CREATE UNIQUE INDEX IF NOT EXISTS ix_steps_session_sequence
ON steps (session_id, sequence);
