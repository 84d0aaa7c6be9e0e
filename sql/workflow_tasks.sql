-- workflow_tasks: which tasks a workflow has, and in which order.
-- Places are 1 to n. No two rows may share one, so rows that move go to negative places first; the
-- statements that do so run together with show_moved_workflow_tasks, all of them or none.

-- name: append_workflow_task(workflow_id, task_id, created_at)<!
-- Append a task. No row: the workflow is archived, or does not exist.
-- Needs: one writer, or two would take the same place.
INSERT INTO workflow_tasks (workflow_id, task_id, sequence, created_at)
SELECT
    w.id,
    :task_id,
    (
        SELECT coalesce(max(m.sequence), 0) + 1
        FROM workflow_tasks AS m
        WHERE m.workflow_id = w.id
    ),
    :created_at
FROM workflows AS w
WHERE w.id = :workflow_id AND w.status <> 'archived'
RETURNING *;

-- name: make_room_for_workflow_task(workflow_id, sequence)!
-- Let the tasks from a place on move back by one, for insert_workflow_task.
-- Needs: one writer, or a task that arrives meanwhile would stay where it is.
UPDATE workflow_tasks
SET sequence = -(sequence + 1)
WHERE workflow_id = :workflow_id AND sequence >= :sequence;

-- name: show_moved_workflow_tasks(workflow_id)!
-- Let the tasks that move arrive at their places.
UPDATE workflow_tasks
SET sequence = -sequence
WHERE workflow_id = :workflow_id AND sequence < 0;

-- name: insert_workflow_task(workflow_id, task_id, sequence, created_at)<!
-- Add a task at a place that is free, and has none free before it.
-- No row: there are fewer tasks, or the workflow is archived, or there is none.
-- Needs: one writer, or the workflow may be archived meanwhile, or the place before be emptied.
INSERT INTO workflow_tasks (workflow_id, task_id, sequence, created_at)
SELECT
    w.id,
    :task_id,
    :sequence,
    :created_at
FROM workflows AS w
WHERE
    w.id = :workflow_id
    AND w.status <> 'archived'
    AND (
        :sequence = 1
        OR EXISTS (
            SELECT 1
            FROM workflow_tasks AS m
            WHERE m.workflow_id = w.id AND m.sequence = :sequence - 1
        )
    )
RETURNING *;

-- name: move_workflow_task(workflow_id, task_id, sequence)<!
-- Move a task to another's place, and those in between by one towards where it was.
-- No row: the workflow has no such task, or no such place.
-- Needs: one writer, or a task that arrives meanwhile would stay where it is.
UPDATE workflow_tasks
SET
    sequence = -CASE
        WHEN workflow_tasks.task_id = :task_id THEN :sequence
        WHEN moved.sequence < :sequence THEN workflow_tasks.sequence - 1
        ELSE workflow_tasks.sequence + 1
    END
FROM (
    SELECT m.sequence
    FROM workflow_tasks AS m
    WHERE m.workflow_id = :workflow_id AND m.task_id = :task_id
) AS moved
WHERE
    workflow_tasks.workflow_id = :workflow_id
    AND (
        workflow_tasks.sequence BETWEEN moved.sequence AND :sequence
        OR workflow_tasks.sequence BETWEEN :sequence AND moved.sequence
    )
    AND EXISTS (
        SELECT 1
        FROM workflow_tasks AS m
        WHERE m.workflow_id = :workflow_id AND m.sequence = :sequence
    )
RETURNING *;

-- name: get_workflow_task(workflow_id, task_id)^
-- No row: the workflow has no such task.
SELECT *
FROM workflow_tasks
WHERE workflow_id = :workflow_id AND task_id = :task_id;

-- name: list_workflow_tasks(workflow_id, after_id, limit)
-- A page of a workflow's places, by task, as in list_tasks_by_workflow.
SELECT *
FROM workflow_tasks
WHERE workflow_id = :workflow_id AND task_id > :after_id
ORDER BY task_id
LIMIT :limit;

-- name: list_workflow_tasks_by_task(task_id, after_id, limit)
-- A page of the workflows that a task belongs to, and its place in each.
SELECT *
FROM workflow_tasks
WHERE task_id = :task_id AND workflow_id > :after_id
ORDER BY workflow_id
LIMIT :limit;

-- name: remove_workflow_task(workflow_id, task_id)<!
-- Take a task out; a trigger moves up those behind it. No row: the workflow has no such task.
DELETE FROM workflow_tasks
WHERE workflow_id = :workflow_id AND task_id = :task_id
RETURNING *;
