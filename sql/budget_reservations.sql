-- budget_reservations: amounts reserved for model calls and not spent yet.
-- A reservation is live while :now < expires_at <= :latest_credible_expiry, as a worktree's lease, and counts as
-- spent until then. The cost entry of its request replaces it.

-- name: forget_expired_reservations(job_id, now)!
-- Those who died left them; they count no more and are in nobody's way, but would pile up.
DELETE FROM budget_reservations
WHERE job_id = :job_id AND expires_at <= :now;

-- name: get_budget(job_id, except_request, now, latest_credible_expiry)^
-- The job, what live reservations hold but for one request, and whether that one was recorded.
-- No row: there is no such job.
SELECT
    j.id,
    j.task,
    j.repo_owner,
    j.repo_name,
    j.branch_base,
    j.status,
    j.budget_nano_usd,
    j.max_requests,
    j.max_minutes,
    j.model_cto,
    j.model_coder,
    j.cost_nano_usd,
    j.tokens_in,
    j.tokens_out,
    j.tokens_cached,
    j.requests_made,
    j.started_at,
    j.finished_at,
    j.cancelled,
    j.last_action,
    j.pr_links,
    j.agents_hash,
    j.created_at,
    j.updated_at,
    coalesce(sum(r.amount_nano_usd), 0) AS reserved_nano_usd,
    count(r.request_id) AS requests_reserved,
    (
        SELECT count(*)
        FROM cost_entries AS c
        WHERE c.job_id = :job_id AND c.request_id = :except_request
    ) AS recorded
FROM jobs AS j
LEFT JOIN budget_reservations AS r
    ON
        j.id = r.job_id
        AND r.expires_at > :now
        AND r.expires_at <= :latest_credible_expiry
        AND r.request_id <> :except_request
WHERE j.id = :job_id
GROUP BY j.id;

-- name: release_reservation(job_id, request_id)!
-- Give a promise back: the call was never made.
DELETE FROM budget_reservations
WHERE job_id = :job_id AND request_id = :request_id;

-- name: list_reservations_by_job(job_id, after_request, limit)
-- A page of a job's reservations by request, including expired ones that are not removed yet.
SELECT *
FROM budget_reservations
WHERE job_id = :job_id AND request_id > :after_request
ORDER BY request_id
LIMIT :limit;
