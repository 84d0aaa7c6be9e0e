-- cost_entries: the statements that SQLite words in its own way.
-- ix_cost_entries_day holds the groups in their order and all that is added up, so nothing is sorted
-- and no entry is read. Whole dollars and the rest are added up apart: neither sum can overflow.

-- name: sum_costs(since_day, last_day, since, until)
-- Differs: a day is the first ten characters of a time here, and a date of its own elsewhere.
-- What was spent on each day with each model.
SELECT
    substr(created_at, 1, 10) AS day,
    provider,
    model,
    count(*) AS requests,
    sum(tokens_in) AS tokens_in,
    sum(tokens_out) AS tokens_out,
    sum(tokens_cached) AS tokens_cached,
    sum(cost_nano_usd / 1000000000) AS whole_usd,
    sum(cost_nano_usd % 1000000000) AS rest_nano_usd
FROM cost_entries
WHERE
    substr(created_at, 1, 10) >= :since_day
    AND substr(created_at, 1, 10) <= :last_day
    AND created_at >= :since
    AND created_at < :until
GROUP BY substr(created_at, 1, 10), provider, model;

-- name: sum_costs_by_job(since_day, last_day, since, until)
-- Differs: a day is the first ten characters of a time here, and a date of its own elsewhere.
-- What each job spent on each day with each model.
SELECT
    substr(created_at, 1, 10) AS day,
    provider,
    model,
    job_id,
    count(*) AS requests,
    sum(tokens_in) AS tokens_in,
    sum(tokens_out) AS tokens_out,
    sum(tokens_cached) AS tokens_cached,
    sum(cost_nano_usd / 1000000000) AS whole_usd,
    sum(cost_nano_usd % 1000000000) AS rest_nano_usd
FROM cost_entries
WHERE
    substr(created_at, 1, 10) >= :since_day
    AND substr(created_at, 1, 10) <= :last_day
    AND created_at >= :since
    AND created_at < :until
GROUP BY substr(created_at, 1, 10), provider, model, job_id;
