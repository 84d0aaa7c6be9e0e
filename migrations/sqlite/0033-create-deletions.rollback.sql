-- 0033-create-deletions, undone: a delete that is under way stays half done until it is asked for again.

DROP TRIGGER IF EXISTS memory_files_chunks;

DELETE FROM memory_file_uploads
WHERE discarded_at IS NOT NULL;

CREATE TRIGGER IF NOT EXISTS memory_files_chunks
AFTER DELETE ON memory_files FOR EACH ROW
BEGIN
    DELETE FROM memory_file_chunks
    WHERE file_id = old.id;
END;

ALTER TABLE memory_file_uploads DROP COLUMN discarded_at;

DROP TRIGGER IF EXISTS workflow_tasks_close_gap;

CREATE TRIGGER IF NOT EXISTS workflow_tasks_close_gap
AFTER DELETE ON workflow_tasks FOR EACH ROW
WHEN
    EXISTS (
        SELECT 1
        FROM workflows AS w
        WHERE w.id = old.workflow_id
    )
BEGIN
    UPDATE workflow_tasks
    SET sequence = -(sequence - 1)
    WHERE workflow_id = old.workflow_id AND sequence > old.sequence;
    UPDATE workflow_tasks
    SET sequence = -sequence
    WHERE workflow_id = old.workflow_id AND sequence < 0;
END;

DROP TRIGGER IF EXISTS worktrees_end_deletion;
DROP TRIGGER IF EXISTS workflows_end_deletion;
DROP TRIGGER IF EXISTS tasks_end_deletion;
DROP TRIGGER IF EXISTS jobs_end_deletion;
DROP TRIGGER IF EXISTS sessions_end_deletion;

DROP INDEX IF EXISTS ix_tool_executions_task_last_link;

DROP TRIGGER IF EXISTS tool_executions_no_delete;

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

DROP TRIGGER IF EXISTS events_no_delete;

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

DROP TABLE IF EXISTS deletions;
