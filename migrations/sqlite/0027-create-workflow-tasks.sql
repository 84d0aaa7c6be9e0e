-- 0027-create-workflow-tasks: which tasks a workflow has, and in which order.
--
-- Why:      a task may belong to several workflows, and has a place in each.
-- Locks:    none (new table).
-- Rollback: drops the table; workflows and tasks stay, which of them belong together is lost.
--
-- depends: 0026-create-workflows

CREATE TABLE IF NOT EXISTS workflow_tasks (
    -- The tasks of workflows, in order.
    workflow_id TEXT NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    task_id TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    -- The place in the workflow: 1 to the number of its tasks, without gaps. Rows that move pass through
    -- negative places, for no two may share one.
    sequence INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (workflow_id, task_id),
    CONSTRAINT workflow_tasks_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- A workflow's tasks in their order.
CREATE UNIQUE INDEX IF NOT EXISTS idx_workflow_tasks_workflow
ON workflow_tasks (workflow_id, sequence);

-- The workflows of a task.
CREATE INDEX IF NOT EXISTS idx_workflow_tasks_task
ON workflow_tasks (task_id, workflow_id);

-- Who comes first, whatever the workflow.
CREATE INDEX IF NOT EXISTS idx_workflow_tasks_sequence
ON workflow_tasks (sequence, workflow_id);

-- Those behind a task that goes move up, also when the task itself is deleted. A workflow that is deleted
-- takes all its places with it: then there is no row of workflows any more, and nobody to move.
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
