-- 0017-create-budget-reservations: what is promised to a model call and not yet spent.
--
-- Why:      agents at work at the same time must not spend the same money twice.
-- Locks:    none (new table).
-- Rollback: drops the table; calls in flight are not counted against the budgets any more.
--
-- depends: 0016-create-cost-entries

CREATE TABLE IF NOT EXISTS budget_reservations (
    -- Promises of money to calls in flight. Each counts until it expires or its cost is recorded,
    -- so that a caller that died blocks its job for no longer than that.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    -- The caller's name for the call; its cost entry has the same.
    request_id TEXT NOT NULL,
    -- The most that the call may cost.
    amount_nano_usd INTEGER NOT NULL,
    expires_at TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT budget_reservations_id_check CHECK (length(id) = 36),
    CONSTRAINT budget_reservations_request_id_check CHECK (
        length(request_id) > 0 AND length(request_id) <= 255
    ),
    CONSTRAINT budget_reservations_amount_nano_usd_check CHECK (amount_nano_usd >= 0),
    CONSTRAINT budget_reservations_expires_at_check CHECK (
        expires_at GLOB '????-??-??T??:??:??.???Z' AND expires_at > created_at
    ),
    CONSTRAINT budget_reservations_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE UNIQUE INDEX IF NOT EXISTS ix_budget_reservations_job_request
ON budget_reservations (job_id, request_id);

-- What is promised to the live ones of a job, without reading the rows.
CREATE INDEX IF NOT EXISTS ix_budget_reservations_job_expires
ON budget_reservations (job_id, expires_at, request_id, amount_nano_usd);
