-- 0024-create-job-views: the questions about jobs that people ask in the sqlite3 shell.
--
-- Why:      how far a job is and what was spent on what should not take a join to find out.
-- Locks:    none (views).
-- Rollback: drops the views; no data is lost.
--
-- depends: 0023-create-context-metrics

CREATE VIEW IF NOT EXISTS job_progress AS
-- Every job with its steps. A step that was skipped is done; fraction is NULL while nothing is planned.
SELECT
    j.id,
    j.task,
    j.status,
    j.cancelled,
    j.last_action,
    count(s.id) AS steps,
    coalesce(sum(s.status IN ('completed', 'skipped')), 0) AS steps_done,
    coalesce(sum(s.status = 'failed'), 0) AS steps_failed,
    sum(s.status IN ('completed', 'skipped')) * 1.0 / nullif(count(s.id), 0) AS fraction,
    (
        SELECT r.name
        FROM job_steps AS r
        WHERE r.job_id = j.id AND r.status = 'running'
        ORDER BY r.id
        LIMIT 1
    ) AS running_step,
    j.started_at,
    j.finished_at
FROM jobs AS j
LEFT JOIN job_steps AS s ON j.id = s.job_id
GROUP BY j.id;

CREATE VIEW IF NOT EXISTS job_costs AS
-- Every job with what it may spend, has spent and has promised, in dollars. remaining_usd is NULL
-- where there is no budget, and below zero where a call cost more than was reserved for it.
WITH live_reservations AS (
    SELECT
        b.job_id,
        sum(b.amount_nano_usd) AS amount_nano_usd,
        count(*) AS requests
    FROM budget_reservations AS b
    WHERE b.expires_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    GROUP BY b.job_id
)

SELECT
    j.id,
    j.task,
    j.repo_owner,
    j.repo_name,
    j.status,
    j.budget_nano_usd / 1000000000.0 AS budget_usd,
    j.cost_nano_usd / 1000000000.0 AS cost_usd,
    coalesce(r.amount_nano_usd, 0) / 1000000000.0 AS reserved_usd,
    (j.budget_nano_usd - j.cost_nano_usd - coalesce(r.amount_nano_usd, 0)) / 1000000000.0 AS remaining_usd,
    j.max_requests,
    j.requests_made,
    coalesce(r.requests, 0) AS requests_reserved,
    j.tokens_in,
    j.tokens_cached,
    j.tokens_out,
    j.created_at
FROM jobs AS j
LEFT JOIN live_reservations AS r ON j.id = r.job_id;

CREATE VIEW IF NOT EXISTS cost_by_day AS
-- What was spent on each day (UTC) with each model, in dollars.
SELECT
    substr(c.created_at, 1, 10) AS day,
    c.provider,
    c.model,
    count(*) AS requests,
    sum(c.tokens_in) AS tokens_in,
    sum(c.tokens_cached) AS tokens_cached,
    sum(c.tokens_out) AS tokens_out,
    sum(c.cost_nano_usd) / 1000000000.0 AS cost_usd
FROM cost_entries AS c
GROUP BY substr(c.created_at, 1, 10), c.provider, c.model;
