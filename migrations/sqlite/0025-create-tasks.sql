-- 0025-create-tasks: what an orchestrator has to do, claimed by workers and fenced by version.
--
-- Why:      a worker claims the oldest pending task; when it dies, another one takes it over.
-- Locks:    none (new tables and view).
-- Rollback: drops the tables and the view; all tasks are lost, and no worker may hold a claim while this runs.
--           The highest fencing number of deleted tasks stays in fencing_floors.
--
-- depends: 0024-create-job-views

CREATE TABLE IF NOT EXISTS tasks (
    -- Tasks: pieces of work, each run by one worker at a time. A running task without a lease was started
    -- by somebody who answers for it; one whose lease ran out is taken over.
    id TEXT NOT NULL PRIMARY KEY,
    title TEXT NOT NULL,
    description TEXT,
    -- What a worker must be able to do to run it: workflow, tool, script, ...
    task_type TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    -- What is to be done, an object.
    config TEXT NOT NULL DEFAULT '{}',
    -- What its creator or its worker added, an object.
    metadata TEXT,
    -- The workspace it works in; claims can take turns between workspaces.
    workspace_path TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- When the run that counts began: the last one, after a take-over.
    started_at TEXT,
    -- When it ended, well or not.
    completed_at TEXT,
    -- Why it failed.
    error TEXT,
    -- Who has claimed it, in the worker's own words.
    lease_owner TEXT,
    -- Tells one claim of an owner from the next.
    lease_token TEXT,
    leased_at TEXT,
    lease_expires_at TEXT,
    -- The fencing number: it only grows, and a write that names an older one is refused.
    version INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT tasks_id_check CHECK (length(id) = 36),
    CONSTRAINT tasks_title_check CHECK (length(title) > 0),
    CONSTRAINT tasks_task_type_check CHECK (length(task_type) > 0),
    -- OR, for IN costs far more on the tables that are written hot.
    CONSTRAINT tasks_status_check CHECK (
        status = 'pending'
        OR status = 'running'
        OR status = 'completed'
        OR status = 'failed'
        OR status = 'cancelled'
    ),
    CONSTRAINT tasks_config_check CHECK (json_valid(config) AND json_type(config) = 'object'),
    CONSTRAINT tasks_metadata_check CHECK (
        metadata IS NULL OR (json_valid(metadata) AND json_type(metadata) = 'object')
    ),
    -- '' stands for "no workspace" in the indexes.
    CONSTRAINT tasks_workspace_path_check CHECK (length(workspace_path) > 0),
    CONSTRAINT tasks_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT tasks_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT tasks_started_at_check CHECK (started_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT tasks_completed_at_check CHECK (completed_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT tasks_leased_at_check CHECK (leased_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT tasks_lease_expires_at_check CHECK (
        lease_expires_at GLOB '????-??-??T??:??:??.???Z' AND lease_expires_at > leased_at
    ),
    CONSTRAINT tasks_lease_check CHECK (
        (
            lease_owner IS NULL AND lease_token IS NULL
            AND leased_at IS NULL AND lease_expires_at IS NULL
        )
        OR (
            lease_owner IS NOT NULL AND lease_token IS NOT NULL
            AND leased_at IS NOT NULL AND lease_expires_at IS NOT NULL
        )
    ),
    CONSTRAINT tasks_lease_needs_running CHECK (lease_owner IS NULL OR status = 'running'),
    CONSTRAINT tasks_version_check CHECK (version >= 0)
) STRICT;

-- A page of a status, and the oldest pending task.
CREATE INDEX IF NOT EXISTS idx_tasks_status
ON tasks (status, created_at, id);

CREATE INDEX IF NOT EXISTS idx_tasks_type
ON tasks (task_type, created_at, id);

CREATE INDEX IF NOT EXISTS idx_tasks_created
ON tasks (created_at, id);

CREATE INDEX IF NOT EXISTS idx_tasks_workspace
ON tasks (workspace_path, created_at, id);

-- The oldest pending task of a type, of a workspace, and of a type in a workspace: what claims take.
-- They begin with status, which is the same in all their rows, so that SQLite finds them better than
-- idx_tasks_status.
CREATE INDEX IF NOT EXISTS ix_tasks_pending_type
ON tasks (status, task_type, created_at, id)
WHERE status = 'pending';

CREATE INDEX IF NOT EXISTS ix_tasks_pending_workspace
ON tasks (status, workspace_path, created_at, id)
WHERE status = 'pending';

CREATE INDEX IF NOT EXISTS ix_tasks_pending_workspace_type
ON tasks (status, workspace_path, task_type, created_at, id)
WHERE status = 'pending';

-- The claims that ran out are taken over first; few tasks are claimed among all that ever were.
CREATE INDEX IF NOT EXISTS ix_tasks_lease_expires_at
ON tasks (lease_expires_at)
WHERE lease_expires_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_tasks_type_lease_expires_at
ON tasks (task_type, lease_expires_at)
WHERE lease_expires_at IS NOT NULL;

CREATE TRIGGER IF NOT EXISTS tasks_version_grows
BEFORE UPDATE OF version ON tasks FOR EACH ROW
WHEN new.version < old.version
BEGIN
    SELECT raise(ABORT, 'tasks.version only grows');
END;

CREATE TRIGGER IF NOT EXISTS tasks_keep_fence
AFTER DELETE ON tasks FOR EACH ROW
BEGIN
    UPDATE fencing_floors
    SET number = old.version
    WHERE resource = 'tasks' AND number < old.version;
END;

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS tasks_updated_at_given
AFTER UPDATE OF updated_at ON tasks FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE tasks
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS tasks_updated_at
AFTER UPDATE ON tasks FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE tasks
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;

CREATE TABLE IF NOT EXISTS task_turns (
    -- Whose turn it is: for each workspace and type of task, how many are pending and when the workspace
    -- was served last. Triggers on tasks keep it, so that a claim finds the workspace that has waited
    -- longest without looking at the others.

    -- '' where tasks have no workspace.
    workspace_path TEXT NOT NULL,
    task_type TEXT NOT NULL,
    -- How many of its tasks are pending.
    pending INTEGER NOT NULL,
    -- Grows with every claim; the workspace's last one got this number. Claims may share a millisecond.
    turn INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (workspace_path, task_type),
    CONSTRAINT task_turns_pending_check CHECK (pending >= 0)
) STRICT;

CREATE INDEX IF NOT EXISTS ix_task_turns_next
ON task_turns (turn, workspace_path)
WHERE pending > 0;

CREATE INDEX IF NOT EXISTS ix_task_turns_next_of_type
ON task_turns (task_type, turn, workspace_path)
WHERE pending > 0;

-- The number of the last claim of all.
CREATE INDEX IF NOT EXISTS ix_task_turns_last
ON task_turns (turn);

CREATE TRIGGER IF NOT EXISTS tasks_enter_turns
AFTER INSERT ON tasks FOR EACH ROW
WHEN new.status = 'pending'
BEGIN
    INSERT INTO task_turns (workspace_path, task_type, pending, turn)
    VALUES (
        coalesce(new.workspace_path, ''),
        new.task_type,
        1,
        coalesce(
            (
                SELECT max(t.turn)
                FROM task_turns AS t
                WHERE t.workspace_path = coalesce(new.workspace_path, '')
            ),
            0
        )
    )
    ON CONFLICT (workspace_path, task_type) DO UPDATE
    SET pending = pending + 1;
END;

CREATE TRIGGER IF NOT EXISTS tasks_move_in_turns
AFTER UPDATE OF status, task_type, workspace_path ON tasks FOR EACH ROW
WHEN old.status = 'pending' OR new.status = 'pending'
BEGIN
    UPDATE task_turns
    SET pending = pending - 1
    WHERE
        workspace_path = coalesce(old.workspace_path, '')
        AND task_type = old.task_type
        AND old.status = 'pending';
    INSERT INTO task_turns (workspace_path, task_type, pending, turn)
    SELECT
        coalesce(new.workspace_path, ''),
        new.task_type,
        1,
        coalesce(max(t.turn), 0)
    FROM task_turns AS t
    WHERE t.workspace_path = coalesce(new.workspace_path, '')
    HAVING new.status = 'pending'
    ON CONFLICT (workspace_path, task_type) DO UPDATE
    SET pending = pending + 1;
END;

CREATE TRIGGER IF NOT EXISTS tasks_take_turn
AFTER UPDATE OF lease_token ON tasks FOR EACH ROW
WHEN new.lease_token IS NOT NULL AND new.lease_token IS NOT old.lease_token
BEGIN
    UPDATE task_turns
    SET turn = 1 + (SELECT max(t.turn) FROM task_turns AS t)
    WHERE workspace_path = coalesce(new.workspace_path, '');
END;

-- A workspace is remembered while it has tasks, whatever has become of them.
CREATE TRIGGER IF NOT EXISTS tasks_leave_turns
AFTER DELETE ON tasks FOR EACH ROW
BEGIN
    UPDATE task_turns
    SET pending = pending - 1
    WHERE
        workspace_path = coalesce(old.workspace_path, '')
        AND task_type = old.task_type
        AND old.status = 'pending';
    DELETE FROM task_turns
    WHERE
        workspace_path = coalesce(old.workspace_path, '')
        AND pending = 0
        AND NOT EXISTS (
            SELECT 1
            FROM tasks AS t
            WHERE t.workspace_path IS old.workspace_path
        );
END;

CREATE VIEW IF NOT EXISTS active_leases AS
-- Every lease, lock and claim that has a holder, one row each. One that has expired and was not taken over
-- is still here, with expired = 1. resource is the table, resource_id the row.
SELECT
    'worktrees' AS resource,
    w.id AS resource_id,
    w.path AS what,
    w.lease_owner AS owner,
    w.version AS fencing_number,
    w.leased_at AS since,
    w.lease_expires_at AS until,
    w.lease_expires_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS expired
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
    l.expires_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS expired
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
    t.lease_expires_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS expired
FROM tasks AS t
WHERE t.lease_expires_at IS NOT NULL;
