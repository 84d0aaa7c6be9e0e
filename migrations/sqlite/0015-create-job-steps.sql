-- 0015-create-job-steps: what an agent does in a job, as far as it is planned.
--
-- Why:      the progress of a job is the share of its steps that are done.
-- Locks:    none (new table).
-- Rollback: drops the table; the steps of all jobs are lost.
--
-- depends: 0014-create-jobs

CREATE TABLE IF NOT EXISTS job_steps (
    -- Steps of a job, in the order in which they were planned.
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- What kind of step it is, in the agent's own words.
    step_type TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'planned',
    -- What there is to tell about it.
    details TEXT,
    started_at TEXT,
    -- When it ended, well or not.
    finished_at TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT job_steps_id_check CHECK (length(id) = 36),
    CONSTRAINT job_steps_name_check CHECK (length(name) > 0 AND length(name) <= 255),
    CONSTRAINT job_steps_step_type_check CHECK (length(step_type) > 0 AND length(step_type) <= 255),
    CONSTRAINT job_steps_status_check CHECK (
        status = 'planned'
        OR status = 'running'
        OR status = 'completed'
        OR status = 'failed'
        OR status = 'skipped'
    ),
    CONSTRAINT job_steps_started_at_check CHECK (started_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT job_steps_finished_at_check CHECK (finished_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT job_steps_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_job_steps_job_id
ON job_steps (job_id, id);

-- How many are done and which one runs, without reading the steps.
CREATE INDEX IF NOT EXISTS ix_job_steps_job_status
ON job_steps (job_id, status, id);
