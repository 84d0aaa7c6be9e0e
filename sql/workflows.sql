-- workflows: what tasks are put together to.
-- status is a state machine: each verb is an UPDATE on the statuses that allow it.

-- name: create_workflow(id, name, description, definition, created_at)<!
-- Begin a workflow, as a draft.
INSERT INTO workflows (id, name, description, definition, created_at, updated_at)
VALUES (:id, :name, :description, :definition, :created_at, :created_at)
RETURNING *;

-- name: get_workflow(id)^
-- No row: there is no such workflow.
SELECT *
FROM workflows
WHERE id = :id;

-- name: find_workflow_by_name(name)^
-- Names may be shared: the newest counts. No row: no workflow has this name.
SELECT *
FROM workflows
WHERE name = :name
ORDER BY created_at DESC, id DESC
LIMIT 1;

-- name: activate_workflow(id, now)<!
-- Put a draft to work, or go on with what was paused. No row: it is neither.
UPDATE workflows
SET
    status = 'active',
    updated_at = :now
WHERE id = :id AND (status = 'draft' OR status = 'paused')
RETURNING *;

-- name: pause_workflow(id, now)<!
-- Hold it. No row: it is not active.
UPDATE workflows
SET
    status = 'paused',
    updated_at = :now
WHERE id = :id AND status = 'active'
RETURNING *;

-- name: archive_workflow(id, now)<!
-- Put it away: it takes no more tasks. No row: it is archived already.
UPDATE workflows
SET
    status = 'archived',
    updated_at = :now
WHERE id = :id AND (status = 'draft' OR status = 'active' OR status = 'paused')
RETURNING *;

-- name: list_workflows(created_at, after_id, limit)
-- A page of all workflows, newest first.
SELECT *
FROM workflows
WHERE (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_workflows_by_status(status, created_at, after_id, limit)
-- A page of the workflows in one status, newest first.
SELECT *
FROM workflows
WHERE status = :status AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_workflows_by_name(name, created_at, after_id, limit)
-- A page of the workflows that share a name, newest first.
SELECT *
FROM workflows
WHERE name = :name AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: workflow_progress(id)^
-- A workflow's tasks, counted by status. No row: there is no such workflow.
SELECT
    count(t.id) FILTER (WHERE t.status = 'pending') AS pending,
    count(t.id) FILTER (WHERE t.status = 'running') AS running,
    count(t.id) FILTER (WHERE t.status = 'completed') AS completed,
    count(t.id) FILTER (WHERE t.status = 'failed') AS failed,
    count(t.id) FILTER (WHERE t.status = 'cancelled') AS cancelled
FROM workflows AS w
LEFT JOIN workflow_tasks AS m ON w.id = m.workflow_id
LEFT JOIN tasks AS t ON m.task_id = t.id
WHERE w.id = :id
GROUP BY w.id;

-- name: delete_workflow(id)<!
-- Delete a workflow; its tasks stay. No row: there is none.
DELETE FROM workflows
WHERE id = :id
RETURNING *;

-- name: weigh_workflow(id, limit)^
-- How many tasks a workflow has, as far as the limit: whether one statement may delete it.
SELECT
    count(*) AS related_rows,
    0 AS bytes
FROM
    (
        SELECT m.task_id
        FROM workflow_tasks AS m
        WHERE m.workflow_id = :id
        LIMIT :limit -- noqa: AM09
    ) AS w;

-- name: mark_workflow_deletion(id, now)<!
-- Show that the workflow is being deleted. One that was left half deleted is marked already.
-- No row: there is none.
INSERT INTO deletions (resource, resource_id, created_at)
SELECT
    'workflows',
    w.id,
    :now
FROM workflows AS w
WHERE w.id = :id
ON CONFLICT (resource, resource_id) DO UPDATE
SET created_at = deletions.created_at
RETURNING resource_id;

-- name: delete_last_tasks_of_workflow(id, limit)<!
-- A piece of a deletion: the last tasks leave first, so that none moves up. No row: none is left.
DELETE FROM workflow_tasks
WHERE
    workflow_id = :id
    AND sequence >= (
        SELECT min(l.sequence)
        FROM (
            SELECT m.sequence
            FROM workflow_tasks AS m
            WHERE m.workflow_id = :id
            ORDER BY m.sequence DESC
            LIMIT :limit
        ) AS l
    )
RETURNING task_id;
