-- budget_reservations: the statement that SQLite words in its own way.

-- name: reserve_budget(id, job_id, request_id, amount_nano_usd, expires_at, created_at, latest_credible_expiry)<!
-- Differs: minutes are added to a time with strftime here, and as an interval elsewhere.
-- Promise an amount to a request, if what was spent, what is promised to others and this stay within
-- every limit; a request that has a reservation gets this one in its place.
-- No row: there is no such job, it is not running or was cancelled, the request was recorded
-- already, or a limit would be passed. A budget of none is all that a total can hold.
INSERT INTO budget_reservations (id, job_id, request_id, amount_nano_usd, expires_at, created_at)
SELECT
    :id,
    j.id,
    :request_id,
    :amount_nano_usd,
    :expires_at,
    :created_at
FROM jobs AS j
WHERE
    j.id = :job_id
    AND j.status = 'running'
    AND NOT j.cancelled
    AND NOT EXISTS (
        SELECT 1
        FROM cost_entries AS c
        WHERE c.job_id = :job_id AND c.request_id = :request_id
    )
    AND (
        SELECT coalesce(sum(r.amount_nano_usd), 0)
        FROM budget_reservations AS r
        WHERE
            r.job_id = :job_id
            AND r.expires_at > :created_at
            AND r.expires_at <= :latest_credible_expiry
            AND r.request_id <> :request_id
    ) + j.cost_nano_usd + :amount_nano_usd <= coalesce(j.budget_nano_usd, 9223372036854775807)
    AND (
        j.max_requests IS NULL
        OR (
            SELECT count(*)
            FROM budget_reservations AS r
            WHERE
                r.job_id = :job_id
                AND r.expires_at > :created_at
                AND r.expires_at <= :latest_credible_expiry
                AND r.request_id <> :request_id
        ) + j.requests_made + 1 <= j.max_requests
    )
    AND (
        j.max_minutes IS NULL
        OR strftime('%Y-%m-%dT%H:%M:%fZ', j.started_at, j.max_minutes || ' minutes') > :created_at
    )
ON CONFLICT (job_id, request_id) DO UPDATE
SET
    amount_nano_usd = excluded.amount_nano_usd,
    expires_at = excluded.expires_at,
    created_at = excluded.created_at
RETURNING *;
