-- 0023-create-context-metrics: what became of the context of each model call.
--
-- Why:      a user interface shows how much of the context was clipped and how often it was compacted.
-- Locks:    none (new table).
-- Rollback: drops the table; the metrics of all jobs are lost.
--
-- depends: 0022-create-memory-limits

CREATE TABLE IF NOT EXISTS context_metrics (
    -- What the assembly of a context came to, one row for each assembly.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    -- The step it was assembled for, where it was for one.
    step_id TEXT REFERENCES job_steps (id) ON DELETE SET NULL,
    -- Tokens that were sent.
    tokens_final INTEGER NOT NULL,
    -- Tokens that were left out.
    tokens_clipped INTEGER NOT NULL DEFAULT 0,
    -- How often messages were compacted on the way.
    compact_ops INTEGER NOT NULL DEFAULT 0,
    -- What there is to know beyond the columns, an object.
    details TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT context_metrics_id_check CHECK (length(id) = 36),
    CONSTRAINT context_metrics_tokens_final_check CHECK (tokens_final >= 0),
    CONSTRAINT context_metrics_tokens_clipped_check CHECK (tokens_clipped >= 0),
    CONSTRAINT context_metrics_compact_ops_check CHECK (compact_ops >= 0),
    CONSTRAINT context_metrics_details_check CHECK (json_valid(details) AND json_type(details) = 'object'),
    CONSTRAINT context_metrics_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_context_metrics_job_id
ON context_metrics (job_id, id);

CREATE INDEX IF NOT EXISTS ix_context_metrics_step_id
ON context_metrics (step_id, id)
WHERE step_id IS NOT NULL;
