-- 0033-create-deletions: large deletes in pieces, with the audit chains right after each one.
--
-- Why:      deleting a session of 200,000 events in one statement held the writer for a second, and
--           leases of other processes ran out meanwhile.
-- Locks:    reads all tool executions once, to index them.
-- Rollback: drops the table; a delete that was under way stays half done, and deleting again finishes it.
--           The chunks of files that were deleted and not emptied yet are deleted at once.
--
-- depends: 0032-create-client-views

CREATE TABLE IF NOT EXISTS deletions (
    -- Rows that are being deleted, each with what belongs to it. What is still here while nobody is at work
    -- on it was left by a process that died: deleting the row again finishes it.
    resource TEXT NOT NULL,
    -- The row.
    resource_id TEXT NOT NULL,
    -- The place in the row's audit chain up to which events or tool executions may go.
    cut INTEGER NOT NULL DEFAULT 0,
    -- When the deletion began.
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (resource, resource_id),
    CONSTRAINT deletions_resource_check CHECK (
        resource = 'sessions'
        OR resource = 'jobs'
        OR resource = 'tasks'
        OR resource = 'workflows'
        OR resource = 'worktrees'
    ),
    CONSTRAINT deletions_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT, WITHOUT ROWID;

-- Besides the cascade, in which the session is gone before its events, a deletion in pieces passes: its
-- statements move the chain's base to the cut before the events up to there go.
DROP TRIGGER IF EXISTS events_no_delete;

CREATE TRIGGER IF NOT EXISTS events_no_delete
BEFORE DELETE ON events FOR EACH ROW
WHEN
    EXISTS (
        SELECT 1 FROM sessions
        WHERE id = old.session_id
    )
    AND NOT EXISTS (
        SELECT 1 FROM deletions
        WHERE resource = 'sessions' AND resource_id = old.session_id AND cut >= old.position
    )
BEGIN
    SELECT raise(ABORT, 'events are history: they go with their session only');
END;

DROP TRIGGER IF EXISTS tool_executions_no_delete;

CREATE TRIGGER IF NOT EXISTS tool_executions_no_delete
BEFORE DELETE ON tool_executions FOR EACH ROW
WHEN
    EXISTS (
        SELECT 1 FROM tasks
        WHERE id = old.task_id
    )
    AND NOT EXISTS (
        SELECT 1 FROM deletions
        WHERE
            resource = 'tasks'
            AND resource_id = old.task_id
            AND cut >= coalesce(old.finished_sequence, old.sequence)
    )
BEGIN
    SELECT raise(ABORT, 'tool executions are history: they go with their task only');
END;

-- A task's tool executions by the last of their links in its chain: the order in which they can go.
CREATE INDEX IF NOT EXISTS ix_tool_executions_task_last_link
ON tool_executions (task_id, coalesce(finished_sequence, sequence));

CREATE TRIGGER IF NOT EXISTS sessions_end_deletion
AFTER DELETE ON sessions FOR EACH ROW
BEGIN
    DELETE FROM deletions
    WHERE resource = 'sessions' AND resource_id = old.id;
END;

CREATE TRIGGER IF NOT EXISTS jobs_end_deletion
AFTER DELETE ON jobs FOR EACH ROW
BEGIN
    DELETE FROM deletions
    WHERE resource = 'jobs' AND resource_id = old.id;
END;

CREATE TRIGGER IF NOT EXISTS tasks_end_deletion
AFTER DELETE ON tasks FOR EACH ROW
BEGIN
    DELETE FROM deletions
    WHERE resource = 'tasks' AND resource_id = old.id;
END;

CREATE TRIGGER IF NOT EXISTS workflows_end_deletion
AFTER DELETE ON workflows FOR EACH ROW
BEGIN
    DELETE FROM deletions
    WHERE resource = 'workflows' AND resource_id = old.id;
END;

CREATE TRIGGER IF NOT EXISTS worktrees_end_deletion
AFTER DELETE ON worktrees FOR EACH ROW
BEGIN
    DELETE FROM deletions
    WHERE resource = 'worktrees' AND resource_id = old.id;
END;

-- A workflow that is being deleted loses its last tasks first: nobody has to move up.
DROP TRIGGER IF EXISTS workflow_tasks_close_gap;

CREATE TRIGGER IF NOT EXISTS workflow_tasks_close_gap
AFTER DELETE ON workflow_tasks FOR EACH ROW
WHEN
    EXISTS (
        SELECT 1
        FROM workflows AS w
        WHERE w.id = old.workflow_id
    )
    AND NOT EXISTS (
        SELECT 1
        FROM deletions AS d
        WHERE d.resource = 'workflows' AND d.resource_id = old.workflow_id
    )
BEGIN
    UPDATE workflow_tasks
    SET sequence = -(sequence - 1)
    WHERE workflow_id = old.workflow_id AND sequence > old.sequence;
    UPDATE workflow_tasks
    SET sequence = -sequence
    WHERE workflow_id = old.workflow_id AND sequence < 0;
END;

-- When the upload was given up, or the file deleted or replaced. Its chunks are removed in pieces, and the
-- row goes last; no chunk is added any more.
ALTER TABLE memory_file_uploads ADD COLUMN discarded_at TEXT
CONSTRAINT memory_file_uploads_discarded_at_check CHECK (discarded_at GLOB '????-??-??T??:??:??.???Z');

-- A file's chunks go with it, also when its job is deleted, unless they were handed to a discarded upload.
DROP TRIGGER IF EXISTS memory_files_chunks;

CREATE TRIGGER IF NOT EXISTS memory_files_chunks
AFTER DELETE ON memory_files FOR EACH ROW
WHEN
    NOT EXISTS (
        SELECT 1 FROM memory_file_uploads
        WHERE id = old.id
    )
BEGIN
    DELETE FROM memory_file_chunks
    WHERE file_id = old.id;
END;
