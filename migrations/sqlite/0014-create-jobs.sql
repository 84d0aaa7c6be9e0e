-- 0014-create-jobs: what agents are asked to do, and what it may cost.
--
-- Why:      budgets, steps, costs and memory all belong to a job.
-- Locks:    none (new table).
-- Rollback: drops the table; the history and the cost totals of all jobs are lost.
--
-- depends: 0013-create-views

CREATE TABLE IF NOT EXISTS jobs (
    -- Jobs of agents, with their limits and what they have used so far. Money is in nano-dollars.
    id TEXT NOT NULL PRIMARY KEY,
    -- What is to be done.
    task TEXT NOT NULL,
    repo_owner TEXT NOT NULL,
    repo_name TEXT NOT NULL,
    -- The branch that the work starts from.
    branch_base TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    -- What the job may spend; NULL is no limit, as for the two below.
    budget_nano_usd INTEGER,
    -- How many model calls it may make.
    max_requests INTEGER,
    -- How long it may make them, from started_at on.
    max_minutes INTEGER,
    -- The model that plans.
    model_cto TEXT,
    -- The model that writes the code.
    model_coder TEXT,
    -- The totals of the job's cost entries, kept in the same transaction as these.
    cost_nano_usd INTEGER NOT NULL DEFAULT 0,
    tokens_in INTEGER NOT NULL DEFAULT 0,
    tokens_out INTEGER NOT NULL DEFAULT 0,
    tokens_cached INTEGER NOT NULL DEFAULT 0,
    requests_made INTEGER NOT NULL DEFAULT 0,
    started_at TEXT,
    -- When it ended, well or not.
    finished_at TEXT,
    -- Whether somebody has called it off: the agent sees it and ends the job.
    cancelled INTEGER NOT NULL DEFAULT 0,
    -- What the agent did last, in its own words.
    last_action TEXT,
    -- The pull requests that came of it, an array of links.
    pr_links TEXT NOT NULL DEFAULT '[]',
    -- Which version of AGENTS.md the job ran under.
    agents_hash TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT jobs_id_check CHECK (length(id) = 36),
    CONSTRAINT jobs_task_check CHECK (length(task) > 0),
    CONSTRAINT jobs_repo_owner_check CHECK (length(repo_owner) > 0 AND length(repo_owner) <= 255),
    CONSTRAINT jobs_repo_name_check CHECK (length(repo_name) > 0 AND length(repo_name) <= 255),
    CONSTRAINT jobs_branch_base_check CHECK (length(branch_base) > 0 AND length(branch_base) <= 255),
    CONSTRAINT jobs_status_check CHECK (
        status = 'pending'
        OR status = 'running'
        OR status = 'paused'
        OR status = 'completed'
        OR status = 'failed'
        OR status = 'cancelled'
    ),
    CONSTRAINT jobs_budget_nano_usd_check CHECK (budget_nano_usd >= 0),
    CONSTRAINT jobs_max_requests_check CHECK (max_requests >= 0),
    -- Ten years, so that the end is a date.
    CONSTRAINT jobs_max_minutes_check CHECK (max_minutes >= 0 AND max_minutes <= 5256000),
    CONSTRAINT jobs_cost_nano_usd_check CHECK (cost_nano_usd >= 0),
    CONSTRAINT jobs_tokens_in_check CHECK (tokens_in >= 0),
    CONSTRAINT jobs_tokens_out_check CHECK (tokens_out >= 0),
    CONSTRAINT jobs_tokens_cached_check CHECK (tokens_cached >= 0),
    CONSTRAINT jobs_requests_made_check CHECK (requests_made >= 0),
    CONSTRAINT jobs_cancelled_check CHECK (cancelled = 0 OR cancelled = 1),
    CONSTRAINT jobs_cancelled_on_request CHECK (status <> 'cancelled' OR cancelled = 1),
    CONSTRAINT jobs_started_when_running CHECK (
        started_at IS NOT NULL OR status NOT IN ('running', 'paused')
    ),
    CONSTRAINT jobs_pr_links_check CHECK (json_valid(pr_links) AND json_type(pr_links) = 'array'),
    CONSTRAINT jobs_started_at_check CHECK (started_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT jobs_finished_at_check CHECK (finished_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT jobs_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT jobs_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- A page of a status, the newest first.
CREATE INDEX IF NOT EXISTS ix_jobs_status_created
ON jobs (status, created_at DESC, id DESC);

-- A page of a repository, likewise.
CREATE INDEX IF NOT EXISTS ix_jobs_repo
ON jobs (repo_owner, repo_name, created_at, id);

CREATE INDEX IF NOT EXISTS ix_jobs_created_at
ON jobs (created_at, id);

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS jobs_updated_at_given
AFTER UPDATE OF updated_at ON jobs FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE jobs
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS jobs_updated_at
AFTER UPDATE ON jobs FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE jobs
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;
