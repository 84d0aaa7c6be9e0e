-- 0020-create-message-summaries: what is left of messages that no longer fit the context.
--
-- Why:      an auditor reads what the agent still knew of a conversation, and when.
-- Locks:    none (new table).
-- Rollback: drops the table; the summaries of all jobs are lost.
--
-- depends: 0019-create-memory-files

CREATE TABLE IF NOT EXISTS message_summaries (
    -- Summaries that agents made of their messages.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    -- The step in which it was made, where it was made in one.
    step_id TEXT REFERENCES job_steps (id) ON DELETE SET NULL,
    -- Whose messages they were: `user`, `assistant`, `tool`, or what else the model calls them.
    role TEXT NOT NULL,
    summary TEXT NOT NULL,
    -- The length of the summary, in tokens.
    tokens INTEGER NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT message_summaries_id_check CHECK (length(id) = 36),
    CONSTRAINT message_summaries_role_check CHECK (length(role) > 0 AND length(role) <= 50),
    CONSTRAINT message_summaries_tokens_check CHECK (tokens >= 0),
    CONSTRAINT message_summaries_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_message_summaries_job_id
ON message_summaries (job_id, id);

CREATE INDEX IF NOT EXISTS ix_message_summaries_step_id
ON message_summaries (step_id, id)
WHERE step_id IS NOT NULL;
