-- tool_executions: the statements that end a call, and measure how long it took.

-- name: complete_tool_execution(id, output, now)<!
-- Differs: julianday() for the duration, which a clock that jumped back makes zero and never negative.
-- The tool gave an answer.
-- No row: it has ended already, or is gone.
UPDATE tool_executions
SET
    output = :output,
    status = 'completed',
    error = NULL,
    completed_at = :now,
    duration_ms = max(0, cast(round((julianday(:now) - julianday(created_at)) * 86400000) AS INTEGER)),
    finished_sequence = 1 + coalesce(
        (
            SELECT c.length FROM audit_chains AS c
            WHERE c.resource = 'tool_executions' AND c.resource_id = tool_executions.task_id
        ),
        0
    ),
    finished_hash = metastore_sha256(
        coalesce(
            (
                SELECT c.last FROM audit_chains AS c
                WHERE c.resource = 'tool_executions' AND c.resource_id = tool_executions.task_id
            ),
            ''
        ),
        id,
        'completed',
        :output,
        NULL,
        :now,
        max(0, cast(round((julianday(:now) - julianday(created_at)) * 86400000) AS INTEGER))
    )
WHERE id = :id AND (status = 'pending' OR status = 'running')
RETURNING *;

-- name: fail_tool_execution(id, error, now)<!
-- Differs: julianday() for the duration, which a clock that jumped back makes zero and never negative.
-- The tool gave none.
-- No row: it has ended already, or is gone.
UPDATE tool_executions
SET
    output = NULL,
    status = 'failed',
    error = :error,
    completed_at = :now,
    duration_ms = max(0, cast(round((julianday(:now) - julianday(created_at)) * 86400000) AS INTEGER)),
    finished_sequence = 1 + coalesce(
        (
            SELECT c.length FROM audit_chains AS c
            WHERE c.resource = 'tool_executions' AND c.resource_id = tool_executions.task_id
        ),
        0
    ),
    finished_hash = metastore_sha256(
        coalesce(
            (
                SELECT c.last FROM audit_chains AS c
                WHERE c.resource = 'tool_executions' AND c.resource_id = tool_executions.task_id
            ),
            ''
        ),
        id,
        'failed',
        NULL,
        :error,
        :now,
        max(0, cast(round((julianday(:now) - julianday(created_at)) * 86400000) AS INTEGER))
    )
WHERE id = :id AND (status = 'pending' OR status = 'running')
RETURNING *;

-- name: time_out_tool_execution(id, error, now)<!
-- Differs: julianday() for the duration, which a clock that jumped back makes zero and never negative.
-- The tool was ended for taking too long.
-- No row: it has ended already, or is gone.
UPDATE tool_executions
SET
    output = NULL,
    status = 'timeout',
    error = :error,
    completed_at = :now,
    duration_ms = max(0, cast(round((julianday(:now) - julianday(created_at)) * 86400000) AS INTEGER)),
    finished_sequence = 1 + coalesce(
        (
            SELECT c.length FROM audit_chains AS c
            WHERE c.resource = 'tool_executions' AND c.resource_id = tool_executions.task_id
        ),
        0
    ),
    finished_hash = metastore_sha256(
        coalesce(
            (
                SELECT c.last FROM audit_chains AS c
                WHERE c.resource = 'tool_executions' AND c.resource_id = tool_executions.task_id
            ),
            ''
        ),
        id,
        'timeout',
        NULL,
        :error,
        :now,
        max(0, cast(round((julianday(:now) - julianday(created_at)) * 86400000) AS INTEGER))
    )
WHERE id = :id AND (status = 'pending' OR status = 'running')
RETURNING *;
