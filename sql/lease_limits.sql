-- lease_limits: what every process agrees to believe of an expiry.

-- name: get_lease_limits()^
-- The limits of the database, which a store compares with its own when it opens.
-- No row: it was removed behind the store's back.
SELECT
    id,
    max_ttl_ms,
    clock_skew_ms
FROM lease_limits
WHERE id = 1;
