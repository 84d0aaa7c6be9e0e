-- tool_executions: the audit log of tools.
-- A call is a link of its task's chain when it begins, and another when it has ended: triggers move
-- the chain's end on, see audit_chains.

-- name: start_tool_execution(id, task_id, tool_name, arguments, created_at)<!
-- A tool is called. No row: the task has ended, or there is none.
-- Needs: one writer, or two would follow the same link, and the task may end meanwhile.
INSERT INTO tool_executions (
    id,
    task_id,
    tool_name,
    arguments,
    status,
    created_at,
    sequence,
    hash
)
SELECT
    :id,
    t.id,
    :tool_name,
    :arguments,
    'running',
    :created_at,
    1 + coalesce(
        (
            SELECT c.length FROM audit_chains AS c
            WHERE c.resource = 'tool_executions' AND c.resource_id = :task_id
        ),
        0
    ),
    metastore_sha256(
        coalesce(
            (
                SELECT c.last FROM audit_chains AS c
                WHERE c.resource = 'tool_executions' AND c.resource_id = :task_id
            ),
            ''
        ),
        :id,
        :task_id,
        :tool_name,
        :arguments,
        :created_at
    )
FROM tasks AS t
WHERE t.id = :task_id AND (t.status = 'pending' OR t.status = 'running')
RETURNING *;

-- name: get_tool_execution(id)^
-- No row: there is no such call.
SELECT *
FROM tool_executions
WHERE id = :id;

-- name: list_tool_executions_by_task(task_id, after_id, limit)
-- A page of a task's calls, in their order.
SELECT *
FROM tool_executions
WHERE task_id = :task_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_tool_executions_by_tool(tool_name, after_id, limit)
-- A page of a tool's calls, in their order.
SELECT *
FROM tool_executions
WHERE tool_name = :tool_name AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_tool_executions_by_status(status, after_id, limit)
-- A page of the calls in a status, in their order: those that run, for one.
SELECT *
FROM tool_executions
WHERE status = :status AND id > :after_id
ORDER BY id
LIMIT :limit;
