-- tasks: units of work, who has claimed them, and until when.
-- status is a state machine: each verb is an UPDATE on the statuses that allow it. A claim is live
-- while :now < lease_expires_at <= :latest_credible_expiry. A later expiry was written by a clock that has
-- jumped back since, and is not believed. version is the fence: claiming, releasing and cancelling raise
-- it. A task that its holder ended keeps the number it ended under.

-- name: create_task(id, title, description, task_type, config, metadata, workspace_path, created_at)<!
-- Put a task behind those that wait. Its version starts above that of every task that was ever deleted.
-- Needs: one writer, or a deleted task may raise the floor meanwhile.
INSERT INTO tasks (
    id,
    title,
    description,
    task_type,
    config,
    metadata,
    workspace_path,
    created_at,
    updated_at,
    version
)
SELECT
    :id,
    :title,
    :description,
    :task_type,
    :config,
    :metadata,
    :workspace_path,
    :created_at,
    :created_at,
    number
FROM fencing_floors
WHERE resource = 'tasks'
RETURNING *;

-- name: get_task(id)^
-- No row: there is no such task.
SELECT *
FROM tasks
WHERE id = :id;

-- name: start_task(id, now)<!
-- Begin a task without a claim. No row: it is not pending.
UPDATE tasks
SET
    status = 'running',
    started_at = :now,
    updated_at = :now
WHERE id = :id AND status = 'pending'
RETURNING *;

-- name: complete_task(id, metadata, now)<!
-- End well what was started without a claim. No row: it is not running, or claimed.
UPDATE tasks
SET
    status = 'completed',
    metadata = coalesce(:metadata, metadata),
    completed_at = :now,
    updated_at = :now
WHERE id = :id AND status = 'running' AND lease_token IS NULL
RETURNING *;

-- name: fail_task(id, error, now)<!
-- Fail an unclaimed task. No row: it has ended already, or is claimed.
UPDATE tasks
SET
    status = 'failed',
    error = :error,
    completed_at = :now,
    updated_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'running') AND lease_token IS NULL
RETURNING *;

-- name: cancel_task(id, now)<!
-- Call it off, also from under its holder, who is fenced. No row: it has ended already.
UPDATE tasks
SET
    status = 'cancelled',
    completed_at = :now,
    updated_at = :now,
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    version = version + 1
WHERE id = :id AND (status = 'pending' OR status = 'running')
RETURNING *;

-- name: delete_task(id, now, latest_credible_expiry)<!
-- Forget a task that nobody holds; its version stays spent. No row: it is held, or gone.
DELETE FROM tasks
WHERE
    id = :id
    AND (lease_expires_at IS NULL OR lease_expires_at <= :now OR lease_expires_at > :latest_credible_expiry)
RETURNING *;

-- name: renew_task_claim(id, version, lease_owner, lease_token, lease_expires_at, now, latest_credible_expiry)<!
-- Move the end of a live claim. No row: it is lost.
-- A clock that is back before the claim was granted leaves the expiry where it is.
UPDATE tasks
SET
    lease_expires_at = CASE
        WHEN :lease_expires_at > leased_at THEN :lease_expires_at
        ELSE lease_expires_at
    END,
    updated_at = :now
WHERE
    id = :id
    AND version = :version
    AND lease_owner = :lease_owner
    AND lease_token = :lease_token
    AND lease_expires_at > :now
    AND lease_expires_at <= :latest_credible_expiry
RETURNING *;

-- name: complete_task_claim(id, version, lease_owner, lease_token, metadata, now, latest_credible_expiry)<!
-- End a claimed task well. No row: the claim is lost.
UPDATE tasks
SET
    status = 'completed',
    metadata = coalesce(:metadata, metadata),
    completed_at = :now,
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    updated_at = :now
WHERE
    id = :id
    AND version = :version
    AND lease_owner = :lease_owner
    AND lease_token = :lease_token
    AND lease_expires_at > :now
    AND lease_expires_at <= :latest_credible_expiry
RETURNING *;

-- name: fail_task_claim(id, version, lease_owner, lease_token, error, now, latest_credible_expiry)<!
-- End a claimed task badly. No row: the claim is lost.
UPDATE tasks
SET
    status = 'failed',
    error = :error,
    completed_at = :now,
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    updated_at = :now
WHERE
    id = :id
    AND version = :version
    AND lease_owner = :lease_owner
    AND lease_token = :lease_token
    AND lease_expires_at > :now
    AND lease_expires_at <= :latest_credible_expiry
RETURNING *;

-- name: release_task_claim(id, version, lease_owner, lease_token, now, latest_credible_expiry)<!
-- Give a claimed task back, to the place it had. No row: the claim is lost.
UPDATE tasks
SET
    status = 'pending',
    started_at = NULL,
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    version = version + 1,
    updated_at = :now
WHERE
    id = :id
    AND version = :version
    AND lease_owner = :lease_owner
    AND lease_token = :lease_token
    AND lease_expires_at > :now
    AND lease_expires_at <= :latest_credible_expiry
RETURNING *;

-- name: abandon_task_claim(lease_token, after, now)!
-- Give back what a cancelled caller claimed without ever seeing the answer. Tokens have no index: it
-- walks the claimed tasks, which have one.
UPDATE tasks
SET
    status = 'pending',
    started_at = NULL,
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    version = version + 1,
    updated_at = :now
WHERE lease_expires_at > :after AND lease_token = :lease_token;

-- name: task_is_claimed(id, version, lease_owner, lease_token, now, latest_credible_expiry)^
-- The guard of a transaction, in which the holder may have ended the task itself: then it has the
-- claim's number still, which whatever else ends a claim raises. No row: the claim is lost.
-- Needs: one writer, or the task may be claimed again before the transaction commits.
SELECT id
FROM tasks
WHERE
    id = :id
    AND version = :version
    AND (
        (
            lease_owner = :lease_owner
            AND lease_token = :lease_token
            AND lease_expires_at > :now
            AND lease_expires_at <= :latest_credible_expiry
        )
        OR status = 'completed'
        OR status = 'failed'
    );

-- name: count_live_task_claims(now, latest_credible_expiry)$
-- How many tasks are claimed.
SELECT count(*)
FROM tasks
WHERE lease_expires_at > :now AND lease_expires_at <= :latest_credible_expiry;

-- name: count_expired_task_claims(now, latest_credible_expiry)$
-- The number of claims that expired and were not taken over.
SELECT count(*)
FROM tasks
WHERE lease_expires_at <= :now OR lease_expires_at > :latest_credible_expiry;

-- name: list_tasks_by_status(status, created_at, after_id, limit)
-- A page of the tasks in one status, newest first.
SELECT *
FROM tasks
WHERE status = :status AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_tasks_by_type(task_type, created_at, after_id, limit)
-- A page of the tasks of one type, newest first.
SELECT *
FROM tasks
WHERE task_type = :task_type AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_tasks_by_workspace(workspace_path, created_at, after_id, limit)
-- A page of the tasks in one workspace, newest first.
SELECT *
FROM tasks
WHERE workspace_path = :workspace_path AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_recent_tasks(created_at, after_id, limit)
-- A page of all tasks, newest first.
SELECT *
FROM tasks
WHERE (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_tasks_by_workflow(workflow_id, after_id, limit)
-- A page of a workflow's tasks, each with its place. By id, which never changes: places do while a reader
-- goes from page to page, and it would skip some tasks and see others twice.
SELECT
    t.id,
    t.title,
    t.description,
    t.task_type,
    t.status,
    t.config,
    t.metadata,
    t.workspace_path,
    t.created_at,
    t.updated_at,
    t.started_at,
    t.completed_at,
    t.error,
    t.lease_owner,
    t.lease_token,
    t.leased_at,
    t.lease_expires_at,
    t.version,
    w.sequence
FROM workflow_tasks AS w
INNER JOIN tasks AS t ON w.task_id = t.id
WHERE w.workflow_id = :workflow_id AND w.task_id > :after_id
ORDER BY w.task_id
LIMIT :limit;

-- name: weigh_task(id, limit)^
-- What goes with a task, in rows and bytes, of each table as far as the limit: whether one statement
-- may delete all of it.
SELECT
    count(*) AS related_rows,
    coalesce(sum(w.bytes), 0) AS bytes
FROM
    (
        SELECT x.bytes
        FROM (
            SELECT length(x.arguments) + coalesce(length(x.output), 0) + coalesce(length(x.error), 0) AS bytes
            FROM tool_executions AS x
            WHERE x.task_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS x
        UNION ALL
        SELECT m.bytes
        FROM (
            SELECT 0 AS bytes
            FROM workflow_tasks AS m
            WHERE m.task_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS m
    ) AS w;

-- name: cancel_task_to_delete(id, now, latest_credible_expiry)<!
-- The first step of a deletion in pieces: nobody can claim a task that is being deleted.
-- No row: it is held, or gone.
UPDATE tasks
SET
    status = CASE WHEN status IN ('completed', 'failed', 'cancelled') THEN status ELSE 'cancelled' END,
    completed_at = coalesce(completed_at, :now),
    updated_at = :now,
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    version = version + 1
WHERE
    id = :id
    AND (lease_expires_at IS NULL OR lease_expires_at <= :now OR lease_expires_at > :latest_credible_expiry)
RETURNING id;

-- name: mark_task_deletion(id, now)!
-- Show that the task is being deleted. One that was left half deleted is marked already.
INSERT INTO deletions (resource, resource_id, created_at)
VALUES ('tasks', :id, :now)
ON CONFLICT (resource, resource_id) DO NOTHING;

-- name: cut_tool_executions(id, limit, byte_limit)<!
-- Choose the tool executions of the next piece: those whose last links come first in the chain. One that
-- ended behind the cut stays, though its beginning is purged. No row: none is left.
UPDATE deletions
SET
    cut = (
        WITH RECURSIVE piece (last_link, place, bytes) AS (
            SELECT
                (
                    SELECT coalesce(n.finished_sequence, n.sequence)
                    FROM tool_executions AS n
                    WHERE n.task_id = :id
                    ORDER BY coalesce(n.finished_sequence, n.sequence)
                    LIMIT 1
                ) AS last_link,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT coalesce(n.finished_sequence, n.sequence)
                    FROM tool_executions AS n
                    WHERE n.task_id = :id AND coalesce(n.finished_sequence, n.sequence) > p.last_link
                    ORDER BY coalesce(n.finished_sequence, n.sequence)
                    LIMIT 1
                ) AS last_link,
                p.place + 1 AS place,
                p.bytes
                + length(x.arguments)
                + coalesce(length(x.output), 0)
                + coalesce(length(x.error), 0) AS bytes
            FROM piece AS p
            INNER JOIN tool_executions AS x
                ON x.task_id = :id AND p.last_link = coalesce(x.finished_sequence, x.sequence)
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.last_link)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
WHERE
    resource = 'tasks'
    AND resource_id = :id
    AND EXISTS (
        SELECT 1
        FROM tool_executions AS x
        WHERE x.task_id = :id AND coalesce(x.finished_sequence, x.sequence) > 0
    )
RETURNING cut;

-- name: purge_tool_executions_from_chain(id, now)!
-- Move the base of the chain to the cut, in the transaction in which the tool executions go that have no link
-- behind it, so that what is left verifies.
UPDATE audit_chains
SET
    purged = min(length, p.cut),
    base = p.cut || ':' || p.hash,
    purged_at = :now
FROM (
    SELECT
        d.cut,
        coalesce(x.finished_hash, x.hash) AS hash
    FROM deletions AS d
    INNER JOIN tool_executions AS x
        ON x.task_id = :id AND d.cut = coalesce(x.finished_sequence, x.sequence)
    WHERE d.resource = 'tasks' AND d.resource_id = :id
) AS p
WHERE resource = 'tool_executions' AND resource_id = :id;

-- name: delete_tool_executions_up_to_cut(id)!
-- The end of the piece that cut_tool_executions began.
DELETE FROM tool_executions
WHERE
    task_id = :id
    AND coalesce(finished_sequence, sequence) <= (
        SELECT d.cut
        FROM deletions AS d
        WHERE d.resource = 'tasks' AND d.resource_id = :id
    );

-- name: leave_workflow_to_delete_task(id)<!
-- A piece of a deletion: a task leaves one workflow at a time, for those behind it move up.
-- No row: it is in none.
DELETE FROM workflow_tasks
WHERE
    task_id = :id
    AND workflow_id = (
        SELECT m.workflow_id
        FROM workflow_tasks AS m
        WHERE m.task_id = :id
        ORDER BY m.workflow_id
        LIMIT 1
    )
RETURNING workflow_id;
