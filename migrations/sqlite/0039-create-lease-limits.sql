-- 0039-create-lease-limits: how long anything may be held is one number for all processes.
--
-- Why:      a process that believes other expiries takes over what another still holds. A store
--           refuses a database whose limits are not its own, and the views use the same row.
-- Locks:    none (new table, and views). To change the limits takes a migration that replaces the
--           triggers, and no process may have the database open while it runs: a store reads the
--           row when it opens.
-- Rollback: drops the table and puts the former views back; nothing else is lost.
--
-- depends: 0038-refuse-foreign-references

CREATE TABLE IF NOT EXISTS lease_limits (
    -- What every process agrees to believe of an expiry: one row, which never changes.

    -- There is one row.
    id INTEGER NOT NULL PRIMARY KEY,
    -- The longest time that anything can be leased, locked, claimed or reserved for.
    max_ttl_ms INTEGER NOT NULL,
    -- How far a clock may be wrong. An expiry further ahead than both is not believed.
    clock_skew_ms INTEGER NOT NULL,
    CONSTRAINT lease_limits_id_check CHECK (id = 1),
    CONSTRAINT lease_limits_max_ttl_ms_check CHECK (max_ttl_ms > 0),
    CONSTRAINT lease_limits_clock_skew_ms_check CHECK (clock_skew_ms >= 0)
) STRICT;

-- 7 days and 5 minutes.
INSERT INTO lease_limits (id, max_ttl_ms, clock_skew_ms)
SELECT
    1,
    604800000,
    300000
WHERE NOT EXISTS (SELECT 1 FROM lease_limits);

-- Stores read the row when they open, and trust it for as long as they are open. INSERT OR REPLACE runs
-- no DELETE trigger.
CREATE TRIGGER IF NOT EXISTS lease_limits_no_insert
BEFORE INSERT ON lease_limits FOR EACH ROW
WHEN EXISTS (SELECT 1 FROM lease_limits)
BEGIN
    SELECT raise(ABORT, 'lease_limits: open stores rely on the limits');
END;

CREATE TRIGGER IF NOT EXISTS lease_limits_no_update
BEFORE UPDATE ON lease_limits FOR EACH ROW
BEGIN
    SELECT raise(ABORT, 'lease_limits: open stores rely on the limits');
END;

CREATE TRIGGER IF NOT EXISTS lease_limits_no_delete
BEFORE DELETE ON lease_limits FOR EACH ROW
BEGIN
    SELECT raise(ABORT, 'lease_limits: open stores rely on the limits');
END;

DROP VIEW IF EXISTS active_leases;

CREATE VIEW IF NOT EXISTS active_leases AS
-- Every lease, lock and claim that has a holder, one row each. One that has expired and was not taken over
-- is still here, with expired = 1; so is one that ends later than lease_limits allows, which no honest clock
-- wrote. resource is the table, resource_id the row.
WITH latest AS (
    SELECT
        strftime(
            '%Y-%m-%dT%H:%M:%fZ', 'now', ((l.max_ttl_ms + l.clock_skew_ms) / 1000.0) || ' seconds'
        ) AS expires_at
    FROM lease_limits AS l
)

SELECT
    'worktrees' AS resource,
    w.id AS resource_id,
    w.path AS what,
    w.lease_owner AS owner,
    w.version AS fencing_number,
    w.leased_at AS since,
    w.lease_expires_at AS until,
    w.lease_expires_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    OR w.lease_expires_at > (SELECT x.expires_at FROM latest AS x) AS expired
FROM worktrees AS w
WHERE w.lease_expires_at IS NOT NULL
UNION ALL
SELECT
    'project_locks' AS resource,
    l.id AS resource_id,
    p.path AS what,
    l.session_id AS owner,
    l.fencing_number,
    l.acquired_at AS since,
    l.expires_at AS until,
    l.expires_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    OR l.expires_at > (SELECT x.expires_at FROM latest AS x) AS expired
FROM project_locks AS l
INNER JOIN projects AS p ON l.project_id = p.id
UNION ALL
SELECT
    'tasks' AS resource,
    t.id AS resource_id,
    t.title AS what,
    t.lease_owner AS owner,
    t.version AS fencing_number,
    t.leased_at AS since,
    t.lease_expires_at AS until,
    t.lease_expires_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    OR t.lease_expires_at > (SELECT x.expires_at FROM latest AS x) AS expired
FROM tasks AS t
WHERE t.lease_expires_at IS NOT NULL;

DROP VIEW IF EXISTS job_costs;

CREATE VIEW IF NOT EXISTS job_costs AS
-- Every job with what it may spend, has spent and has promised, in dollars. remaining_usd is NULL
-- where there is no budget, and below zero where a call cost more than was reserved for it.
WITH latest AS (
    SELECT
        strftime(
            '%Y-%m-%dT%H:%M:%fZ', 'now', ((l.max_ttl_ms + l.clock_skew_ms) / 1000.0) || ' seconds'
        ) AS expires_at
    FROM lease_limits AS l
),

live_reservations AS (
    SELECT
        b.job_id,
        sum(b.amount_nano_usd) AS amount_nano_usd,
        count(*) AS requests
    FROM budget_reservations AS b
    WHERE
        b.expires_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
        AND b.expires_at <= (SELECT x.expires_at FROM latest AS x)
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

DROP VIEW IF EXISTS stale_clients;

CREATE VIEW IF NOT EXISTS stale_clients AS
-- Every open connection that was not heard from for five minutes, the longest silent first. Those whose
-- last heartbeat lies further ahead than clocks may be wrong come last: a clock that was ahead wrote it,
-- so silent_seconds is NULL.
SELECT
    c.id,
    c.client_id,
    c.user_id,
    c.connection_type,
    c.created_at,
    c.last_heartbeat,
    CASE
        WHEN c.last_heartbeat <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
            THEN cast((julianday('now') - julianday(c.last_heartbeat)) * 86400 AS INTEGER)
    END AS silent_seconds
FROM client_sessions AS c
WHERE
    c.is_active = 1
    AND (
        c.last_heartbeat < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-5 minutes')
        OR c.last_heartbeat > (
            SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now', (l.clock_skew_ms / 1000.0) || ' seconds')
            FROM lease_limits AS l
        )
    )
ORDER BY c.last_heartbeat;
