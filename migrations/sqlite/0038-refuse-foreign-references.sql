-- 0038-refuse-foreign-references: a row refers to rows of the same session, job or repository.
--
-- Why:      a session in a worktree of another repository edits the wrong files, and an artifact or a
--           summary that names a stranger's command or step is attributed to the wrong work.
-- Locks:    none (triggers only); rows that are there are not checked. The triggers sleep while the
--           reference is NULL.
-- Rollback: drops the triggers; nothing is lost.
--
-- depends: 0037-correct-costs

-- A debug session runs in a worktree of its repository. A workflow has no repository, and takes any.
CREATE TRIGGER IF NOT EXISTS sessions_worktree_id_insert
BEFORE INSERT ON sessions FOR EACH ROW
WHEN
    new.worktree_id IS NOT NULL
    AND EXISTS (
        SELECT 1
        FROM worktrees AS w
        WHERE w.id = new.worktree_id AND w.repository_id <> new.repository_id
    )
BEGIN
    SELECT raise(ABORT, 'sessions.worktree_id must be a worktree of the repository');
END;

CREATE TRIGGER IF NOT EXISTS sessions_worktree_id_update
BEFORE UPDATE OF worktree_id, repository_id ON sessions FOR EACH ROW
WHEN
    new.worktree_id IS NOT NULL
    AND EXISTS (
        SELECT 1
        FROM worktrees AS w
        WHERE w.id = new.worktree_id AND w.repository_id <> new.repository_id
    )
BEGIN
    SELECT raise(ABORT, 'sessions.worktree_id must be a worktree of the repository');
END;

-- An artifact comes from a command of its own session.
CREATE TRIGGER IF NOT EXISTS artifacts_command_id_insert
BEFORE INSERT ON artifacts FOR EACH ROW
WHEN
    new.command_id IS NOT NULL
    AND EXISTS (
        SELECT 1
        FROM commands AS c
        WHERE c.id = new.command_id AND c.session_id <> new.session_id
    )
BEGIN
    SELECT raise(ABORT, 'artifacts.command_id must be a command of the session');
END;

CREATE TRIGGER IF NOT EXISTS artifacts_command_id_update
BEFORE UPDATE OF command_id, session_id ON artifacts FOR EACH ROW
WHEN
    new.command_id IS NOT NULL
    AND EXISTS (
        SELECT 1
        FROM commands AS c
        WHERE c.id = new.command_id AND c.session_id <> new.session_id
    )
BEGIN
    SELECT raise(ABORT, 'artifacts.command_id must be a command of the session');
END;

-- A summary is made in a step of its own job.
CREATE TRIGGER IF NOT EXISTS message_summaries_step_id_insert
BEFORE INSERT ON message_summaries FOR EACH ROW
WHEN
    new.step_id IS NOT NULL
    AND EXISTS (
        SELECT 1
        FROM job_steps AS s
        WHERE s.id = new.step_id AND s.job_id <> new.job_id
    )
BEGIN
    SELECT raise(ABORT, 'message_summaries.step_id must be a step of the job');
END;

CREATE TRIGGER IF NOT EXISTS message_summaries_step_id_update
BEFORE UPDATE OF step_id, job_id ON message_summaries FOR EACH ROW
WHEN
    new.step_id IS NOT NULL
    AND EXISTS (
        SELECT 1
        FROM job_steps AS s
        WHERE s.id = new.step_id AND s.job_id <> new.job_id
    )
BEGIN
    SELECT raise(ABORT, 'message_summaries.step_id must be a step of the job');
END;

-- A context is assembled for a step of its own job.
CREATE TRIGGER IF NOT EXISTS context_metrics_step_id_insert
BEFORE INSERT ON context_metrics FOR EACH ROW
WHEN
    new.step_id IS NOT NULL
    AND EXISTS (
        SELECT 1
        FROM job_steps AS s
        WHERE s.id = new.step_id AND s.job_id <> new.job_id
    )
BEGIN
    SELECT raise(ABORT, 'context_metrics.step_id must be a step of the job');
END;

CREATE TRIGGER IF NOT EXISTS context_metrics_step_id_update
BEFORE UPDATE OF step_id, job_id ON context_metrics FOR EACH ROW
WHEN
    new.step_id IS NOT NULL
    AND EXISTS (
        SELECT 1
        FROM job_steps AS s
        WHERE s.id = new.step_id AND s.job_id <> new.job_id
    )
BEGIN
    SELECT raise(ABORT, 'context_metrics.step_id must be a step of the job');
END;
