-- 0009-create-commands: what a session ran, and how it ended.
--
-- Why:      a command's log and exit code must be found long after it ran.
-- Locks:    none (new table).
-- Rollback: drops the table; the commands of all sessions are lost, their log files are not.
--
-- depends: 0008-create-events

CREATE TABLE IF NOT EXISTS commands (
    -- Commands that a session was asked to run, in the order of sequence.
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- The place within the session, each taken once.
    sequence INTEGER NOT NULL,
    -- The program and its arguments, an array: no shell splits it.
    argv TEXT NOT NULL,
    working_directory TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    -- NULL until it ended, and where it ended without one.
    exit_code INTEGER,
    -- Where its output is, an absolute path.
    log_path TEXT,
    -- Why it could not run, or was ended.
    error_message TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    started_at TEXT,
    completed_at TEXT,
    UNIQUE (session_id, sequence),
    CONSTRAINT commands_id_check CHECK (length(id) = 36),
    CONSTRAINT commands_sequence_check CHECK (sequence >= 0),
    CONSTRAINT commands_argv_check CHECK (
        json_valid(argv) AND json_type(argv) = 'array' AND json_array_length(argv) > 0
    ),
    CONSTRAINT commands_status_check CHECK (
        status = 'pending'
        OR status = 'running'
        OR status = 'completed'
        OR status = 'failed'
        OR status = 'cancelled'
        OR status = 'timeout'
    ),
    -- A path from the root, or from a drive.
    CONSTRAINT commands_log_path_check CHECK (substr(log_path, 1, 1) = '/' OR substr(log_path, 2, 1) = ':'),
    CONSTRAINT commands_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT commands_started_at_check CHECK (started_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT commands_completed_at_check CHECK (completed_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;
