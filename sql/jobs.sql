-- jobs: what agents are asked to do, and what it may cost.
-- cancelled is a request: it ends a job that has not begun, and any other job only when its agent
-- acknowledges it. The totals are kept by the statements of cost_entries.

-- name: create_job(id, task, repo_owner, repo_name, branch_base, budget_nano_usd, max_requests, max_minutes, model_cto, model_coder, agents_hash, created_at)<!
-- Ask for something to be done.
INSERT INTO jobs (
    id,
    task,
    repo_owner,
    repo_name,
    branch_base,
    budget_nano_usd,
    max_requests,
    max_minutes,
    model_cto,
    model_coder,
    agents_hash,
    created_at,
    updated_at
)
VALUES (
    :id,
    :task,
    :repo_owner,
    :repo_name,
    :branch_base,
    :budget_nano_usd,
    :max_requests,
    :max_minutes,
    :model_cto,
    :model_coder,
    :agents_hash,
    :created_at,
    :created_at
)
RETURNING *;

-- name: get_job(id)^
-- No row: there is no such job.
SELECT *
FROM jobs
WHERE id = :id;

-- name: start_job(id, now)<!
-- Begin. No row: it is not pending.
UPDATE jobs
SET
    status = 'running',
    started_at = :now,
    updated_at = :now
WHERE id = :id AND status = 'pending'
RETURNING *;

-- name: pause_job(id, now)<!
-- Interrupt. No row: it is not running.
UPDATE jobs
SET
    status = 'paused',
    updated_at = :now
WHERE id = :id AND status = 'running'
RETURNING *;

-- name: resume_job(id, now)<!
-- Resume. No row: it is not paused, or was cancelled meanwhile.
UPDATE jobs
SET
    status = 'running',
    updated_at = :now
WHERE id = :id AND status = 'paused' AND NOT cancelled
RETURNING *;

-- name: complete_job(id, now)<!
-- End well. No row: it has not begun, or has ended already.
UPDATE jobs
SET
    status = 'completed',
    finished_at = :now,
    updated_at = :now
WHERE id = :id AND (status = 'running' OR status = 'paused')
RETURNING *;

-- name: fail_job(id, last_action, now)<!
-- End badly; the last action stays as it was unless there is one to note. No row: it has ended already.
UPDATE jobs
SET
    status = 'failed',
    last_action = coalesce(:last_action, last_action),
    finished_at = :now,
    updated_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'running' OR status = 'paused')
RETURNING *;

-- name: cancel_job(id, now)<!
-- Call it off: it ends at once if it has not begun, and else when its agent acknowledges it.
-- No row: it has ended already.
UPDATE jobs
SET
    status = CASE status WHEN 'pending' THEN 'cancelled' ELSE status END,
    finished_at = CASE status WHEN 'pending' THEN :now ELSE finished_at END,
    cancelled = TRUE,
    updated_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'running' OR status = 'paused')
RETURNING *;

-- name: acknowledge_job_cancel(id, now)<!
-- End a job whose cancellation was requested. No row: none was requested, or it has ended already.
UPDATE jobs
SET
    status = 'cancelled',
    finished_at = :now,
    updated_at = :now
WHERE id = :id AND (status = 'running' OR status = 'paused') AND cancelled
RETURNING *;

-- name: set_job_limits(id, budget_nano_usd, max_requests, max_minutes, now)<!
-- Change a job's limits; what it has used already stays. No row: there is no such job.
UPDATE jobs
SET
    budget_nano_usd = :budget_nano_usd,
    max_requests = :max_requests,
    max_minutes = :max_minutes,
    updated_at = :now
WHERE id = :id
RETURNING *;

-- name: set_job_last_action(id, last_action, now)<!
-- Record what the agent did. No row: there is no such job.
UPDATE jobs
SET
    last_action = :last_action,
    updated_at = :now
WHERE id = :id
RETURNING *;

-- name: list_jobs_by_status(status, created_at, after_id, limit)
-- A page of one status, the newest first.
SELECT *
FROM jobs
WHERE status = :status AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_jobs_by_repo(repo_owner, repo_name, created_at, after_id, limit)
-- A page of one repository, the newest first.
SELECT *
FROM jobs
WHERE repo_owner = :repo_owner AND repo_name = :repo_name AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_recent_jobs(created_at, after_id, limit)
-- A page of all, the newest first.
SELECT *
FROM jobs
WHERE (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: get_job_progress(id)^
-- How many steps there are, are done and have failed, and the one that runs: of several, the first planned.
-- No row: there is no such job.
SELECT
    (
        SELECT count(*)
        FROM job_steps AS a
        WHERE a.job_id = j.id
    ) AS total,
    (
        SELECT count(*)
        FROM job_steps AS d
        WHERE d.job_id = j.id AND (d.status = 'completed' OR d.status = 'skipped')
    ) AS done,
    (
        SELECT count(*)
        FROM job_steps AS f
        WHERE f.job_id = j.id AND f.status = 'failed'
    ) AS failed,
    s.id,
    s.job_id,
    s.name,
    s.step_type,
    s.status,
    s.details,
    s.started_at,
    s.finished_at,
    s.created_at
FROM jobs AS j
LEFT JOIN job_steps AS s
    ON s.id = (
        SELECT r.id
        FROM job_steps AS r
        WHERE r.job_id = j.id AND r.status = 'running'
        ORDER BY r.id
        LIMIT 1
    )
WHERE j.id = :id;

-- name: delete_job(id)<!
-- Forget a job with all that belongs to it. No row: there was none.
DELETE FROM jobs
WHERE id = :id
RETURNING *;

-- name: weigh_job(id, limit)^
-- What goes with a job, in rows and bytes, of each table as far as the limit: whether one statement
-- may delete all of it.
SELECT
    count(*) AS related_rows,
    coalesce(sum(w.bytes), 0) AS bytes
FROM
    (
        SELECT f.bytes
        FROM (
            SELECT f.size_bytes AS bytes
            FROM memory_files AS f
            WHERE f.job_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS f
        UNION ALL
        SELECT u.bytes
        FROM (
            SELECT 1048576 AS bytes
            FROM memory_file_uploads AS u
            WHERE u.job_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS u
        UNION ALL
        SELECT m.bytes
        FROM (
            SELECT length(m.content) + length(m.tags) AS bytes
            FROM memory_items AS m
            WHERE m.job_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS m
        UNION ALL
        SELECT y.bytes
        FROM (
            SELECT length(y.summary) AS bytes
            FROM message_summaries AS y
            WHERE y.job_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS y
        UNION ALL
        SELECT c.bytes
        FROM (
            SELECT length(c.details) AS bytes
            FROM context_metrics AS c
            WHERE c.job_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS c
        UNION ALL
        SELECT s.bytes
        FROM (
            SELECT coalesce(length(s.details), 0) AS bytes
            FROM job_steps AS s
            WHERE s.job_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS s
        UNION ALL
        SELECT e.bytes
        FROM (
            SELECT 0 AS bytes
            FROM cost_entries AS e
            WHERE e.job_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS e
        UNION ALL
        SELECT r.bytes
        FROM (
            SELECT 0 AS bytes
            FROM budget_reservations AS r
            WHERE r.job_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS r
    ) AS w;

-- name: cancel_job_to_delete(id, now)<!
-- The first step of a deletion in pieces: a job that is being deleted takes no more work.
-- No row: there is none.
UPDATE jobs
SET
    status = CASE WHEN status IN ('completed', 'failed', 'cancelled') THEN status ELSE 'cancelled' END,
    cancelled = (cancelled OR status NOT IN ('completed', 'failed')),
    finished_at = coalesce(finished_at, :now),
    updated_at = :now
WHERE id = :id
RETURNING id;

-- name: mark_job_deletion(id, now)!
-- Show that the job is being deleted. One that was left half deleted is marked already.
INSERT INTO deletions (resource, resource_id, created_at)
VALUES ('jobs', :id, :now)
ON CONFLICT (resource, resource_id) DO NOTHING;

-- name: delete_items_of_job(id, limit, byte_limit)<!
-- A piece of a deletion: notes of a job. No row: none is left.
DELETE FROM memory_items
WHERE
    job_id = :id
    AND id <= (
        WITH RECURSIVE piece (id, place, bytes) AS (
            SELECT
                (
                    SELECT n.id
                    FROM memory_items AS n
                    WHERE n.job_id = :id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.id
                    FROM memory_items AS n
                    WHERE n.job_id = :id AND n.id > p.id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                p.place + 1 AS place,
                p.bytes + length(m.content) + length(m.tags) AS bytes
            FROM piece AS p
            INNER JOIN memory_items AS m ON m.job_id = :id AND p.id = m.id
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.id)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_summaries_of_job(id, limit, byte_limit)<!
-- A piece of a deletion: summaries of a job, before the steps that they name. No row: none is left.
DELETE FROM message_summaries
WHERE
    job_id = :id
    AND id <= (
        WITH RECURSIVE piece (id, place, bytes) AS (
            SELECT
                (
                    SELECT n.id
                    FROM message_summaries AS n
                    WHERE n.job_id = :id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.id
                    FROM message_summaries AS n
                    WHERE n.job_id = :id AND n.id > p.id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                p.place + 1 AS place,
                p.bytes + length(m.summary) AS bytes
            FROM piece AS p
            INNER JOIN message_summaries AS m ON m.job_id = :id AND p.id = m.id
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.id)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_metrics_of_job(id, limit, byte_limit)<!
-- A piece of a deletion: metrics of a job, before the steps that they name. No row: none is left.
DELETE FROM context_metrics
WHERE
    job_id = :id
    AND id <= (
        WITH RECURSIVE piece (id, place, bytes) AS (
            SELECT
                (
                    SELECT n.id
                    FROM context_metrics AS n
                    WHERE n.job_id = :id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.id
                    FROM context_metrics AS n
                    WHERE n.job_id = :id AND n.id > p.id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                p.place + 1 AS place,
                p.bytes + length(c.details) AS bytes
            FROM piece AS p
            INNER JOIN context_metrics AS c ON c.job_id = :id AND p.id = c.id
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.id)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_steps_of_job(id, limit, byte_limit)<!
-- A piece of a deletion: steps of a job. No row: none is left.
DELETE FROM job_steps
WHERE
    job_id = :id
    AND id <= (
        WITH RECURSIVE piece (id, place, bytes) AS (
            SELECT
                (
                    SELECT n.id
                    FROM job_steps AS n
                    WHERE n.job_id = :id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.id
                    FROM job_steps AS n
                    WHERE n.job_id = :id AND n.id > p.id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                p.place + 1 AS place,
                p.bytes + coalesce(length(s.details), 0) AS bytes
            FROM piece AS p
            INNER JOIN job_steps AS s ON s.job_id = :id AND p.id = s.id
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.id)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_costs_of_job(id, limit)<!
-- A piece of a deletion: cost entries of a job, whose totals stay with it. No row: none is left.
DELETE FROM cost_entries
WHERE
    id IN (
        SELECT e.id
        FROM cost_entries AS e
        WHERE e.job_id = :id
        LIMIT :limit -- noqa: AM09
    )
RETURNING id;

-- name: delete_reservations_of_job(id, limit)<!
-- A piece of a deletion: reservations of a job. No row: none is left.
DELETE FROM budget_reservations
WHERE
    id IN (
        SELECT r.id
        FROM budget_reservations AS r
        WHERE r.job_id = :id
        LIMIT :limit -- noqa: AM09
    )
RETURNING id;
