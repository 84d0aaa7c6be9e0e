-- 0002-create-worktrees: checkouts that workers lease, fenced by version.
--
-- Why:      a worker reserves a worktree before it touches the files.
-- Locks:    none (new tables).
-- Rollback: drops the tables; worktrees must be registered again, and fencing numbers start again
--           at 0: no worker may hold a lease while this runs.
--
-- depends: 0001-create-repositories

CREATE TABLE IF NOT EXISTS fencing_floors (
    -- The highest fencing number among the rows that are gone, for each table that hands such numbers
    -- out: a row that comes later starts above it, so that no number is ever given twice.
    resource TEXT NOT NULL PRIMARY KEY,
    number INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT fencing_floors_resource_check CHECK (resource IN ('worktrees', 'project_locks', 'tasks')),
    CONSTRAINT fencing_floors_number_check CHECK (number >= 0)
) STRICT;

INSERT OR IGNORE INTO fencing_floors (resource, number)
VALUES ('worktrees', 0), ('project_locks', 0), ('tasks', 0);

CREATE TRIGGER IF NOT EXISTS fencing_floors_only_grow
BEFORE UPDATE ON fencing_floors FOR EACH ROW
WHEN new.number < old.number OR new.resource <> old.resource
BEGIN
    SELECT raise(ABORT, 'fencing_floors.number only grows');
END;

-- Without its floor, a table could register no row any more.
CREATE TRIGGER IF NOT EXISTS fencing_floors_no_delete
BEFORE DELETE ON fencing_floors FOR EACH ROW
BEGIN
    SELECT raise(ABORT, 'fencing_floors: the floors stay');
END;

CREATE TABLE IF NOT EXISTS worktrees (
    -- Checkouts of repositories, leased to one worker at a time. A worktree is free while the lease
    -- columns are NULL or lease_expires_at has passed.
    id TEXT NOT NULL PRIMARY KEY,
    repository_id TEXT NOT NULL REFERENCES repositories (id) ON DELETE RESTRICT,
    -- Where the checkout is on disk.
    path TEXT NOT NULL UNIQUE,
    branch TEXT,
    -- The commit that is checked out.
    commit_sha TEXT,
    -- What the checkout was prepared with: an object of name and hash, say of a lock file.
    environment_hashes TEXT NOT NULL DEFAULT '{}',
    -- A retired worktree is never leased.
    state TEXT NOT NULL DEFAULT 'ready',
    -- Who holds the lease, in the worker's own words.
    lease_owner TEXT,
    -- Tells one lease of an owner from the next.
    lease_token TEXT,
    leased_at TEXT,
    lease_expires_at TEXT,
    -- The fencing number: it only grows, and a write that names an older one is refused.
    version INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- Also what the least recently used worktree is found by.
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT worktrees_id_check CHECK (length(id) = 36),
    CONSTRAINT worktrees_path_check CHECK (length(path) > 0),
    CONSTRAINT worktrees_environment_hashes_check CHECK (
        json_valid(environment_hashes) AND json_type(environment_hashes) = 'object'
    ),
    -- OR, for IN costs far more on the tables that are written hot.
    CONSTRAINT worktrees_state_check CHECK (state = 'ready' OR state = 'retired'),
    CONSTRAINT worktrees_leased_at_check CHECK (leased_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT worktrees_lease_expires_at_check CHECK (
        lease_expires_at GLOB '????-??-??T??:??:??.???Z' AND lease_expires_at > leased_at
    ),
    CONSTRAINT worktrees_lease_check CHECK (
        (
            lease_owner IS NULL AND lease_token IS NULL
            AND leased_at IS NULL AND lease_expires_at IS NULL
        )
        OR (
            lease_owner IS NOT NULL AND lease_token IS NOT NULL
            AND leased_at IS NOT NULL AND lease_expires_at IS NOT NULL
        )
    ),
    CONSTRAINT worktrees_version_check CHECK (version >= 0),
    CONSTRAINT worktrees_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT worktrees_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_worktrees_repository_id
ON worktrees (repository_id, id);

-- The three that acquire_worktree walks. '' stands for "free" and sorts before every time, so that
-- one range finds the free and the expired alike, the least recently used first.
CREATE INDEX IF NOT EXISTS ix_worktrees_free
ON worktrees (repository_id, coalesce(lease_expires_at, ''), updated_at)
WHERE state = 'ready';

CREATE INDEX IF NOT EXISTS ix_worktrees_free_commit
ON worktrees (repository_id, commit_sha, coalesce(lease_expires_at, ''), updated_at)
WHERE state = 'ready' AND commit_sha IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_worktrees_free_environment
ON worktrees (repository_id, environment_hashes, coalesce(lease_expires_at, ''), updated_at)
WHERE state = 'ready' AND environment_hashes <> '{}';

-- The leases that are held, whoever they belong to.
CREATE INDEX IF NOT EXISTS ix_worktrees_lease_expires_at
ON worktrees (lease_expires_at)
WHERE lease_expires_at IS NOT NULL;

CREATE TRIGGER IF NOT EXISTS worktrees_version_grows
BEFORE UPDATE OF version ON worktrees FOR EACH ROW
WHEN new.version < old.version
BEGIN
    SELECT raise(ABORT, 'worktrees.version only grows');
END;

CREATE TRIGGER IF NOT EXISTS worktrees_keep_fence
AFTER DELETE ON worktrees FOR EACH ROW
BEGIN
    UPDATE fencing_floors
    SET number = old.version
    WHERE resource = 'worktrees' AND number < old.version;
END;

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS worktrees_updated_at_given
AFTER UPDATE OF updated_at ON worktrees FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE worktrees
    SET updated_at = new.updated_at
    WHERE id = new.id AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS worktrees_updated_at
AFTER UPDATE ON worktrees FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE worktrees
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = new.id AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;
