-- 0037-correct-costs: cache writes, reasoning and corrections in cost_entries.
--
-- Why:      providers sell cache writes and reasoning at prices of their own, and calls that had them were
--           priced too low; refunds and corrections had no place, so that totals were changed by hand.
--           The view cost_by_day overflowed where the API does not.
-- Locks:    rewrites cost_entries, and reads every table with a foreign key, while it holds the writer.
-- Rollback: rebuilds the table as it was. The tokens of both kinds are lost, and corrections that added to a
--           cost look like calls; fails while there is a refund.
--
-- depends: 0036-bind-secrets-to-incarnations

-- It names the table, which would stop the renaming.
DROP VIEW IF EXISTS cost_by_day;

CREATE TABLE IF NOT EXISTS cost_entries_rebuilt (
    -- Model calls that were paid for, and corrections of what they cost. An entry is never changed, and goes only
    -- with its job.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    -- The caller's name for the call, which makes a repeated recording harmless.
    request_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    -- Input that was read in full; tokens_cached were read from the provider's cache, tokens_cache_write were
    -- written to it, and tokens_reasoning is output that was thought and not said. No token is in two columns.
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    tokens_cached INTEGER NOT NULL DEFAULT 0,
    tokens_cache_write INTEGER NOT NULL DEFAULT 0,
    tokens_reasoning INTEGER NOT NULL DEFAULT 0,
    -- Below zero only in a correction: a refund.
    cost_nano_usd INTEGER NOT NULL,
    -- Which price list the cost was worked out with; NULL where the caller knew it.
    priced_by TEXT,
    -- The entry that this one corrects; NULL in that of a call.
    corrects TEXT REFERENCES cost_entries (id) ON DELETE CASCADE,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT cost_entries_id_check CHECK (length(id) = 36),
    CONSTRAINT cost_entries_request_id_check CHECK (length(request_id) > 0 AND length(request_id) <= 255),
    CONSTRAINT cost_entries_provider_check CHECK (length(provider) > 0 AND length(provider) <= 255),
    CONSTRAINT cost_entries_model_check CHECK (length(model) > 0 AND length(model) <= 255),
    CONSTRAINT cost_entries_tokens_in_check CHECK (tokens_in >= 0 AND tokens_in <= 1000000000),
    CONSTRAINT cost_entries_tokens_out_check CHECK (tokens_out >= 0 AND tokens_out <= 1000000000),
    CONSTRAINT cost_entries_tokens_cached_check CHECK (tokens_cached >= 0 AND tokens_cached <= 1000000000),
    CONSTRAINT cost_entries_tokens_cache_write_check CHECK (
        tokens_cache_write >= 0 AND tokens_cache_write <= 1000000000
    ),
    CONSTRAINT cost_entries_tokens_reasoning_check CHECK (
        tokens_reasoning >= 0 AND tokens_reasoning <= 1000000000
    ),
    CONSTRAINT cost_entries_cost_nano_usd_check CHECK (cost_nano_usd >= 0 OR corrects IS NOT NULL),
    CONSTRAINT cost_entries_corrects_check CHECK (corrects <> id),
    CONSTRAINT cost_entries_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

INSERT INTO cost_entries_rebuilt (
    id,
    job_id,
    request_id,
    provider,
    model,
    tokens_in,
    tokens_out,
    tokens_cached,
    cost_nano_usd,
    priced_by,
    created_at
)
SELECT
    id,
    job_id,
    request_id,
    provider,
    model,
    tokens_in,
    tokens_out,
    tokens_cached,
    cost_nano_usd,
    priced_by,
    created_at
FROM cost_entries;

DROP TABLE IF EXISTS cost_entries;

ALTER TABLE cost_entries_rebuilt RENAME TO cost_entries;

CREATE UNIQUE INDEX IF NOT EXISTS ix_cost_entries_job_request
ON cost_entries (job_id, request_id);

CREATE INDEX IF NOT EXISTS ix_cost_entries_job_id
ON cost_entries (job_id, id);

-- Sums by any of day, provider, model and job: in the order of the groups, and with all they need.
CREATE INDEX IF NOT EXISTS ix_cost_entries_day
ON cost_entries (
    substr(created_at, 1, 10),
    provider,
    model,
    job_id,
    created_at,
    tokens_in,
    tokens_out,
    tokens_cached,
    tokens_cache_write,
    tokens_reasoning,
    corrects,
    cost_nano_usd
);

-- The corrections of an entry, for what is left to take back of it and for the foreign key.
CREATE INDEX IF NOT EXISTS ix_cost_entries_corrects
ON cost_entries (corrects)
WHERE corrects IS NOT NULL;

CREATE VIEW IF NOT EXISTS cost_by_day AS
-- What was spent on each day (UTC) with each model, in dollars; below zero on a day with more refunds than costs.
-- Whole dollars and the rest are added up apart: neither sum can overflow. requests counts calls, not corrections.
SELECT
    substr(c.created_at, 1, 10) AS day,
    c.provider,
    c.model,
    count(*) - count(c.corrects) AS requests,
    sum(c.tokens_in) AS tokens_in,
    sum(c.tokens_cached) AS tokens_cached,
    sum(c.tokens_cache_write) AS tokens_cache_write,
    sum(c.tokens_out) AS tokens_out,
    sum(c.tokens_reasoning) AS tokens_reasoning,
    sum(c.cost_nano_usd / 1000000000) + sum(c.cost_nano_usd % 1000000000) / 1000000000.0 AS cost_usd
FROM cost_entries AS c
GROUP BY substr(c.created_at, 1, 10), c.provider, c.model;
