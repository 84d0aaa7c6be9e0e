-- context_metrics: what became of the context of each model call.

-- name: create_context_metric(id, job_id, step_id, tokens_final, tokens_clipped, compact_ops, details, created_at)<!
-- Note what the assembly of a context came to.
INSERT INTO context_metrics (
    id,
    job_id,
    step_id,
    tokens_final,
    tokens_clipped,
    compact_ops,
    details,
    created_at
)
VALUES (
    :id,
    :job_id,
    :step_id,
    :tokens_final,
    :tokens_clipped,
    :compact_ops,
    :details,
    :created_at
)
RETURNING *;

-- name: get_context_metric(id)^
-- No row: there is no such metric.
SELECT *
FROM context_metrics
WHERE id = :id;

-- name: list_context_metrics_by_job(job_id, after_id, limit)
-- A page of a job's metrics, oldest first.
SELECT *
FROM context_metrics
WHERE job_id = :job_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_context_metrics_by_step(step_id, after_id, limit)
-- A page of a step's metrics, oldest first.
SELECT *
FROM context_metrics
WHERE step_id = :step_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: total_context_metrics(job_id)^
-- What a job's metrics add up to; zeros for a job that has none.
SELECT
    count(*) AS contexts,
    coalesce(sum(tokens_final), 0) AS tokens_final,
    coalesce(sum(tokens_clipped), 0) AS tokens_clipped,
    coalesce(sum(compact_ops), 0) AS compactions,
    coalesce(max(tokens_final), 0) AS largest
FROM context_metrics
WHERE job_id = :job_id;
