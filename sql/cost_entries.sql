-- cost_entries: what each model call has cost.
-- An entry, the end of its reservation and the job's new totals are one operation. A job has two kinds of
-- tokens less: cache writes were read in full and count as input there, reasoning counts as output.

-- name: create_cost_entry(id, job_id, request_id, provider, model, tokens_in, tokens_out, tokens_cached, tokens_cache_write, tokens_reasoning, cost_nano_usd, priced_by, created_at)<!
-- Record a call. No row: it was recorded before, and is not charged again.
INSERT INTO cost_entries (
    id,
    job_id,
    request_id,
    provider,
    model,
    tokens_in,
    tokens_out,
    tokens_cached,
    tokens_cache_write,
    tokens_reasoning,
    cost_nano_usd,
    priced_by,
    created_at
)
VALUES (
    :id,
    :job_id,
    :request_id,
    :provider,
    :model,
    :tokens_in,
    :tokens_out,
    :tokens_cached,
    :tokens_cache_write,
    :tokens_reasoning,
    :cost_nano_usd,
    :priced_by,
    :created_at
)
ON CONFLICT (job_id, request_id) DO NOTHING
RETURNING *;

-- name: settle_reservation(job_id, request_id)!
-- What was promised to the call is spent, or was never needed.
DELETE FROM budget_reservations
WHERE job_id = :job_id AND request_id = :request_id;

-- name: charge_job(job_id, tokens_in, tokens_out, tokens_cached, tokens_cache_write, tokens_reasoning, cost_nano_usd, now)<!
-- Add an entry to its job's totals. The money is spent, so no limit is asked here but that of the column.
-- No row: the total would pass it.
UPDATE jobs
SET
    cost_nano_usd = cost_nano_usd + :cost_nano_usd,
    tokens_in = tokens_in + :tokens_in + :tokens_cache_write,
    tokens_out = tokens_out + :tokens_out + :tokens_reasoning,
    tokens_cached = tokens_cached + :tokens_cached,
    requests_made = requests_made + 1,
    updated_at = :now
WHERE id = :job_id AND cost_nano_usd <= 9223372036854775807 - :cost_nano_usd
RETURNING
    id,
    task,
    repo_owner,
    repo_name,
    branch_base,
    status,
    budget_nano_usd,
    max_requests,
    max_minutes,
    model_cto,
    model_coder,
    cost_nano_usd,
    tokens_in,
    tokens_out,
    tokens_cached,
    requests_made,
    started_at,
    finished_at,
    cancelled,
    last_action,
    pr_links,
    agents_hash,
    created_at,
    updated_at;

-- name: create_cost_correction(id, corrects, request_id, cost_nano_usd, created_at)<!
-- Correct what a call has cost, by an entry of its own. What is taken back is compared with what the call and
-- its corrections so far add up to where it is written: of two refunds at once, the second sees the first.
-- No row: it was recorded before, there is no such call, or it did not cost that much.
-- Needs: one writer, or two refunds could each fit, and not both.
INSERT INTO cost_entries (
    id,
    job_id,
    request_id,
    provider,
    model,
    tokens_in,
    tokens_out,
    cost_nano_usd,
    corrects,
    created_at
)
SELECT
    :id,
    e.job_id,
    :request_id,
    e.provider,
    e.model,
    0,
    0,
    :cost_nano_usd,
    e.id,
    :created_at
FROM cost_entries AS e
WHERE
    e.id = :corrects
    AND e.corrects IS NULL
    AND e.cost_nano_usd + coalesce(
        (
            SELECT sum(c.cost_nano_usd)
            FROM cost_entries AS c
            WHERE c.corrects = e.id
        ),
        0
    ) >= -:cost_nano_usd
ON CONFLICT (job_id, request_id) DO NOTHING
RETURNING *;

-- name: charge_correction(id, cost_nano_usd, now)<!
-- Add the correction :id to the totals of its job, or subtract it. It does not count as a call.
-- No row: the total would pass what the column holds.
UPDATE jobs
SET
    cost_nano_usd = cost_nano_usd + :cost_nano_usd,
    updated_at = :now
WHERE
    id = (
        SELECT c.job_id
        FROM cost_entries AS c
        WHERE c.id = :id
    )
    AND cost_nano_usd <= 9223372036854775807 - CASE WHEN :cost_nano_usd > 0 THEN :cost_nano_usd ELSE 0 END
RETURNING
    id,
    task,
    repo_owner,
    repo_name,
    branch_base,
    status,
    budget_nano_usd,
    max_requests,
    max_minutes,
    model_cto,
    model_coder,
    cost_nano_usd,
    tokens_in,
    tokens_out,
    tokens_cached,
    requests_made,
    started_at,
    finished_at,
    cancelled,
    last_action,
    pr_links,
    agents_hash,
    created_at,
    updated_at;

-- name: get_charged_job(job_id)^
-- The job of a call that was recorded before. No row: it was deleted since.
SELECT
    id,
    task,
    repo_owner,
    repo_name,
    branch_base,
    status,
    budget_nano_usd,
    max_requests,
    max_minutes,
    model_cto,
    model_coder,
    cost_nano_usd,
    tokens_in,
    tokens_out,
    tokens_cached,
    requests_made,
    started_at,
    finished_at,
    cancelled,
    last_action,
    pr_links,
    agents_hash,
    created_at,
    updated_at
FROM jobs
WHERE id = :job_id;

-- name: get_cost_entry(id)^
-- No row: there is no such entry.
SELECT *
FROM cost_entries
WHERE id = :id;

-- name: find_cost_entry_by_request(job_id, request_id)^
-- No row: the call was not recorded.
SELECT *
FROM cost_entries
WHERE job_id = :job_id AND request_id = :request_id;

-- name: list_cost_entries_by_job(job_id, after_id, limit)
-- A page of a job's entries, in the order of recording.
SELECT *
FROM cost_entries
WHERE job_id = :job_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_cost_discrepancies(limit)
-- Scans: adds up every entry there is.
-- The jobs whose totals are not the sum of their entries, with both. Read by a check of the whole database.
SELECT
    j.id,
    j.cost_nano_usd,
    j.tokens_in,
    j.tokens_out,
    j.tokens_cached,
    j.requests_made,
    coalesce(sum(c.cost_nano_usd / 1000000000), 0) AS whole_usd,
    coalesce(sum(c.cost_nano_usd % 1000000000), 0) AS rest_nano_usd,
    coalesce(sum(c.tokens_in + c.tokens_cache_write), 0) AS sum_tokens_in,
    coalesce(sum(c.tokens_out + c.tokens_reasoning), 0) AS sum_tokens_out,
    coalesce(sum(c.tokens_cached), 0) AS sum_tokens_cached,
    count(c.id) - count(c.corrects) AS calls
FROM jobs AS j
LEFT JOIN cost_entries AS c ON j.id = c.job_id
GROUP BY j.id
HAVING
    j.cost_nano_usd <> coalesce(sum(c.cost_nano_usd / 1000000000), 0) * 1000000000
    + coalesce(sum(c.cost_nano_usd % 1000000000), 0)
    OR j.tokens_in <> coalesce(sum(c.tokens_in + c.tokens_cache_write), 0)
    OR j.tokens_out <> coalesce(sum(c.tokens_out + c.tokens_reasoning), 0)
    OR j.tokens_cached <> coalesce(sum(c.tokens_cached), 0)
    OR j.requests_made <> count(c.id) - count(c.corrects)
ORDER BY j.id
LIMIT :limit;
