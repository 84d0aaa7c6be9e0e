-- job_steps: what an agent does in a job, as far as it is planned.
-- In a job that has ended or was cancelled no step is planned or started; what has started may end.

-- name: create_job_step(id, job_id, name, step_type, details, created_at)<!
-- Plan a step. No row: the job has ended or was cancelled, or there is none.
-- Needs: one writer, or the job may end meanwhile.
INSERT INTO job_steps (id, job_id, name, step_type, details, created_at)
SELECT
    :id,
    j.id,
    :name,
    :step_type,
    :details,
    :created_at
FROM jobs AS j
WHERE
    j.id = :job_id
    AND NOT j.cancelled
    AND (j.status = 'pending' OR j.status = 'running' OR j.status = 'paused')
RETURNING *;

-- name: get_job_step(id)^
-- No row: there is no such step.
SELECT *
FROM job_steps
WHERE id = :id;

-- name: start_job_step(id, now)<!
-- Begin. No row: it is not planned, or its job has ended or was cancelled.
-- Needs: one writer, or the job may end meanwhile.
UPDATE job_steps
SET
    status = 'running',
    started_at = :now
WHERE
    id = :id
    AND status = 'planned'
    AND EXISTS (
        SELECT 1
        FROM jobs AS j
        WHERE
            j.id = job_steps.job_id
            AND NOT j.cancelled
            AND (j.status = 'pending' OR j.status = 'running' OR j.status = 'paused')
    )
RETURNING *;

-- name: complete_job_step(id, details, now)<!
-- End well; the details stay as they were unless there are others. No row: it is not running.
UPDATE job_steps
SET
    status = 'completed',
    details = coalesce(:details, details),
    finished_at = :now
WHERE id = :id AND status = 'running'
RETURNING *;

-- name: fail_job_step(id, details, now)<!
-- End badly; the details stay as they were unless there are others. No row: it has ended already.
UPDATE job_steps
SET
    status = 'failed',
    details = coalesce(:details, details),
    finished_at = :now
WHERE id = :id AND (status = 'planned' OR status = 'running')
RETURNING *;

-- name: skip_job_step(id, details, now)<!
-- Leave it out; the details stay as they were unless there are others. No row: it is not planned.
UPDATE job_steps
SET
    status = 'skipped',
    details = coalesce(:details, details),
    finished_at = :now
WHERE id = :id AND status = 'planned'
RETURNING *;

-- name: list_job_steps_by_job(job_id, after_id, limit)
-- A page of a job's steps, in the order in which they were planned.
SELECT *
FROM job_steps
WHERE job_id = :job_id AND id > :after_id
ORDER BY id
LIMIT :limit;
