-- 0028-create-tool-executions: which tools a task called, with what, and what came of it.
--
-- Why:      what an agent did must be found, and trusted, long after it did it.
-- Locks:    none (new table).
-- Rollback: drops the table; the audit log of all tasks is lost.
--
-- depends: 0027-create-workflow-tasks

CREATE TABLE IF NOT EXISTS tool_executions (
    -- The audit log of tools: a call is written when it begins and once more when it has ended.
    id TEXT NOT NULL PRIMARY KEY,
    task_id TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    tool_name TEXT NOT NULL,
    -- What the tool was called with, an object.
    arguments TEXT NOT NULL DEFAULT '{}',
    -- What the tool gave, any JSON.
    output TEXT,
    status TEXT NOT NULL DEFAULT 'pending',
    -- Why it failed or was ended.
    error TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    completed_at TEXT,
    -- From created_at to completed_at, in milliseconds.
    duration_ms INTEGER,
    -- The places of its beginning and its end in the task's chain, and the hash of each.
    sequence INTEGER,
    hash TEXT,
    finished_sequence INTEGER,
    finished_hash TEXT,
    CONSTRAINT tool_executions_id_check CHECK (length(id) = 36),
    CONSTRAINT tool_executions_tool_name_check CHECK (length(tool_name) BETWEEN 1 AND 255),
    CONSTRAINT tool_executions_arguments_check CHECK (
        json_valid(arguments) AND json_type(arguments) = 'object'
    ),
    CONSTRAINT tool_executions_output_check CHECK (output IS NULL OR json_valid(output)),
    CONSTRAINT tool_executions_status_check CHECK (
        status = 'pending'
        OR status = 'running'
        OR status = 'completed'
        OR status = 'failed'
        OR status = 'timeout'
    ),
    -- Ended or not, and nothing in between.
    CONSTRAINT tool_executions_end_check CHECK (
        (
            (status = 'pending' OR status = 'running')
            AND completed_at IS NULL AND duration_ms IS NULL AND output IS NULL AND error IS NULL
        )
        OR (
            status <> 'pending' AND status <> 'running'
            AND completed_at IS NOT NULL AND duration_ms IS NOT NULL
        )
    ),
    CONSTRAINT tool_executions_duration_ms_check CHECK (duration_ms >= 0),
    CONSTRAINT tool_executions_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT tool_executions_completed_at_check CHECK (completed_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- Also what finds the rows of a task that is deleted.
CREATE INDEX IF NOT EXISTS idx_tool_executions_task
ON tool_executions (task_id, id);

CREATE INDEX IF NOT EXISTS idx_tool_executions_tool
ON tool_executions (tool_name, id);

CREATE INDEX IF NOT EXISTS idx_tool_executions_status
ON tool_executions (status, id);

CREATE INDEX IF NOT EXISTS idx_tool_executions_created
ON tool_executions (created_at);

CREATE TRIGGER IF NOT EXISTS tool_executions_no_update
BEFORE UPDATE ON tool_executions FOR EACH ROW
WHEN
    (old.status <> 'pending' AND old.status <> 'running')
    OR new.id <> old.id
    OR new.task_id <> old.task_id
    OR new.tool_name <> old.tool_name
    OR new.arguments <> old.arguments
    OR new.created_at <> old.created_at
    OR new.sequence IS NOT old.sequence
    OR new.hash IS NOT old.hash
BEGIN
    SELECT raise(ABORT, 'tool executions are history: one ends once, and nothing else changes');
END;

-- In a cascade the task is gone before its tool executions, so that it passes.
CREATE TRIGGER IF NOT EXISTS tool_executions_no_delete
BEFORE DELETE ON tool_executions FOR EACH ROW
WHEN
    EXISTS (
        SELECT 1 FROM tasks
        WHERE id = old.task_id
    )
BEGIN
    SELECT raise(ABORT, 'tool executions are history: they go with their task only');
END;
