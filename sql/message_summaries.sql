-- message_summaries: summaries of messages that no longer fit the context.

-- name: create_message_summary(id, job_id, step_id, role, summary, tokens, created_at)<!
-- Keep a summary.
INSERT INTO message_summaries (id, job_id, step_id, role, summary, tokens, created_at)
VALUES (:id, :job_id, :step_id, :role, :summary, :tokens, :created_at)
RETURNING *;

-- name: get_message_summary(id)^
-- No row: there is no such summary.
SELECT *
FROM message_summaries
WHERE id = :id;

-- name: list_message_summaries_by_job(job_id, after_id, limit)
-- A page of a job's summaries, oldest first.
SELECT *
FROM message_summaries
WHERE job_id = :job_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_message_summaries_by_step(step_id, after_id, limit)
-- A page of a step's summaries, oldest first.
SELECT *
FROM message_summaries
WHERE step_id = :step_id AND id > :after_id
ORDER BY id
LIMIT :limit;
