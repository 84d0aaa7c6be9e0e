-- 0037-correct-costs, undone: the tokens of cache writes and reasoning are lost. Fails while there is a refund.

DROP VIEW IF EXISTS cost_by_day;

-- Not renamed into place: the table is to be written as it was.
CREATE TABLE IF NOT EXISTS cost_entries_kept AS
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

CREATE TABLE IF NOT EXISTS cost_entries (
    -- Model calls that were paid for. An entry is never changed, and goes only with its job.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    -- The caller's name for the call, which makes a repeated recording harmless.
    request_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    -- Input that was read in full; tokens_cached were read from the provider's cache. No token is in two columns.
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    tokens_cached INTEGER NOT NULL DEFAULT 0,
    cost_nano_usd INTEGER NOT NULL,
    -- Which price list the cost was worked out with; NULL where the caller knew it.
    priced_by TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT cost_entries_id_check CHECK (length(id) = 36),
    CONSTRAINT cost_entries_request_id_check CHECK (length(request_id) > 0 AND length(request_id) <= 255),
    CONSTRAINT cost_entries_provider_check CHECK (length(provider) > 0 AND length(provider) <= 255),
    CONSTRAINT cost_entries_model_check CHECK (length(model) > 0 AND length(model) <= 255),
    CONSTRAINT cost_entries_tokens_in_check CHECK (tokens_in >= 0 AND tokens_in <= 1000000000),
    CONSTRAINT cost_entries_tokens_out_check CHECK (tokens_out >= 0 AND tokens_out <= 1000000000),
    CONSTRAINT cost_entries_tokens_cached_check CHECK (tokens_cached >= 0 AND tokens_cached <= 1000000000),
    CONSTRAINT cost_entries_cost_nano_usd_check CHECK (cost_nano_usd >= 0),
    CONSTRAINT cost_entries_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

INSERT INTO cost_entries (
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
FROM cost_entries_kept;

DROP TABLE IF EXISTS cost_entries_kept;

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
    cost_nano_usd
);

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
