-- cost_entries: the statements that SQLite words in its own way.
-- ix_cost_entries_day holds all that is grouped by and added up, so no entry is read. What is not asked
-- for is NULL, so that the groups are those of the answer. Whole dollars and the rest are added up apart:
-- neither sum can overflow.

-- name: sum_costs(by_provider, by_model, by_day, since_day, last_day, since, until)
-- Differs: a day is the first ten characters of a time here, and a date of its own elsewhere.
-- Scans: adds up every entry of the period.
-- What was spent, in groups of what is asked for. First by day and model, as the index is ordered, so that
-- no more than these few groups are sorted.
SELECT
    CASE WHEN :by_provider THEN d.provider END AS provider,
    CASE WHEN :by_model THEN d.model END AS model,
    NULL AS job_id,
    CASE WHEN :by_day THEN d.day END AS day,
    sum(d.requests) AS requests,
    sum(d.tokens_in) AS tokens_in,
    sum(d.tokens_out) AS tokens_out,
    sum(d.tokens_cached) AS tokens_cached,
    sum(d.tokens_cache_write) AS tokens_cache_write,
    sum(d.tokens_reasoning) AS tokens_reasoning,
    sum(d.whole_usd) AS whole_usd,
    sum(d.rest_nano_usd) AS rest_nano_usd
FROM (
    SELECT
        substr(created_at, 1, 10) AS day,
        provider,
        model,
        count(*) - count(corrects) AS requests,
        sum(tokens_in) AS tokens_in,
        sum(tokens_out) AS tokens_out,
        sum(tokens_cached) AS tokens_cached,
        sum(tokens_cache_write) AS tokens_cache_write,
        sum(tokens_reasoning) AS tokens_reasoning,
        sum(cost_nano_usd / 1000000000) AS whole_usd,
        sum(cost_nano_usd % 1000000000) AS rest_nano_usd
    FROM cost_entries
    WHERE
        substr(created_at, 1, 10) >= :since_day
        AND substr(created_at, 1, 10) <= :last_day
        AND created_at >= :since
        AND created_at < :until
    GROUP BY substr(created_at, 1, 10), provider, model
) AS d
GROUP BY
    CASE WHEN :by_provider THEN d.provider END,
    CASE WHEN :by_model THEN d.model END,
    CASE WHEN :by_day THEN d.day END
ORDER BY
    CASE WHEN :by_provider THEN d.provider END,
    CASE WHEN :by_model THEN d.model END,
    CASE WHEN :by_day THEN d.day END;

-- name: sum_costs_by_job(by_provider, by_model, by_day, since_day, last_day, since, until)
-- Differs: a day is the first ten characters of a time here, and a date of its own elsewhere.
-- Scans: adds up every entry of the period.
-- What each job spent, in groups of what else is asked for.
SELECT
    CASE WHEN :by_provider THEN provider END AS provider,
    CASE WHEN :by_model THEN model END AS model,
    job_id,
    CASE WHEN :by_day THEN substr(created_at, 1, 10) END AS day,
    count(*) - count(corrects) AS requests,
    sum(tokens_in) AS tokens_in,
    sum(tokens_out) AS tokens_out,
    sum(tokens_cached) AS tokens_cached,
    sum(tokens_cache_write) AS tokens_cache_write,
    sum(tokens_reasoning) AS tokens_reasoning,
    sum(cost_nano_usd / 1000000000) AS whole_usd,
    sum(cost_nano_usd % 1000000000) AS rest_nano_usd
FROM cost_entries
WHERE
    substr(created_at, 1, 10) >= :since_day
    AND substr(created_at, 1, 10) <= :last_day
    AND created_at >= :since
    AND created_at < :until
GROUP BY
    CASE WHEN :by_provider THEN provider END,
    CASE WHEN :by_model THEN model END,
    job_id,
    CASE WHEN :by_day THEN substr(created_at, 1, 10) END
ORDER BY
    CASE WHEN :by_provider THEN provider END,
    CASE WHEN :by_model THEN model END,
    job_id,
    CASE WHEN :by_day THEN substr(created_at, 1, 10) END;
