-- worktrees: who may use a checkout, and until when.
-- A lease is live while :now < lease_expires_at <= :latest_credible_expiry. A later expiry was written by
-- a clock that has jumped back since, and is not believed. version is the fence: taking and releasing
-- raise it, so no two holders share a number.

-- name: create_worktree(id, repository_id, path, branch, commit_sha, environment_hashes, created_at)<!
-- Register a checkout. Its version starts above that of every worktree that was ever deleted.
-- Needs: one writer, or a deleted worktree may raise the floor meanwhile.
INSERT INTO worktrees (
    id,
    repository_id,
    path,
    branch,
    commit_sha,
    environment_hashes,
    version,
    created_at,
    updated_at
)
SELECT
    :id,
    :repository_id,
    :path,
    :branch,
    :commit_sha,
    :environment_hashes,
    number,
    :created_at,
    :created_at
FROM fencing_floors
WHERE resource = 'worktrees'
RETURNING *;

-- name: get_worktree(id)^
-- No row: there is no such worktree.
SELECT *
FROM worktrees
WHERE id = :id;

-- name: find_worktree_by_path(path)^
-- No row: no worktree is registered at this path.
SELECT *
FROM worktrees
WHERE path = :path;

-- name: find_worktree_by_lease_token(lease_token, after)^
-- Whose lease is this? People ask it, so tokens have no index: it walks the leased worktrees, which
-- have one. No row: the lease is over, and the worktree free or another's.
SELECT *
FROM worktrees
WHERE lease_expires_at > :after AND lease_token = :lease_token;

-- name: count_live_worktree_leases(now, latest_credible_expiry)$
-- How many worktrees are held.
SELECT count(*)
FROM worktrees
WHERE lease_expires_at > :now AND lease_expires_at <= :latest_credible_expiry;

-- name: count_expired_worktree_leases(now, latest_credible_expiry)$
-- The number of leases that expired and were not taken over.
SELECT count(*)
FROM worktrees
WHERE lease_expires_at <= :now OR lease_expires_at > :latest_credible_expiry;

-- name: list_worktrees_by_repository(repository_id, after_id, limit)
-- A page of a repository's worktrees, in the order of registration.
SELECT *
FROM worktrees
WHERE repository_id = :repository_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: reserve_worktree(id, version, lease_owner, lease_token, lease_expires_at, now, latest_credible_expiry)<!
-- Take a free or expired worktree, unless it moved since the caller read it.
-- No row: the race was lost, or it is held, retired or gone.
UPDATE worktrees
SET
    lease_owner = :lease_owner,
    lease_token = :lease_token,
    leased_at = :now,
    lease_expires_at = :lease_expires_at,
    version = version + 1,
    updated_at = :now
WHERE
    id = :id
    AND version = :version
    AND state = 'ready'
    AND (lease_expires_at IS NULL OR lease_expires_at <= :now OR lease_expires_at > :latest_credible_expiry)
RETURNING *;

-- name: renew_worktree(id, version, lease_owner, lease_token, lease_expires_at, now, latest_credible_expiry)<!
-- Move the end of a live lease. No row: it is lost.
-- A clock that is back before the lease was granted leaves the expiry where it is.
UPDATE worktrees
SET
    lease_expires_at = CASE
        WHEN :lease_expires_at > leased_at THEN :lease_expires_at
        ELSE lease_expires_at
    END,
    updated_at = :now
WHERE
    id = :id
    AND version = :version
    AND lease_owner = :lease_owner
    AND lease_token = :lease_token
    AND lease_expires_at > :now
    AND lease_expires_at <= :latest_credible_expiry
RETURNING *;

-- name: record_worktree_checkout(id, version, lease_owner, lease_token, branch, commit_sha, environment_hashes, now, latest_credible_expiry)<!
-- Note what the holder has checked out; the hashes stay unless there are others. No row: the lease is lost.
UPDATE worktrees
SET
    branch = :branch,
    commit_sha = :commit_sha,
    environment_hashes = coalesce(:environment_hashes, environment_hashes),
    updated_at = :now
WHERE
    id = :id
    AND version = :version
    AND lease_owner = :lease_owner
    AND lease_token = :lease_token
    AND lease_expires_at > :now
    AND lease_expires_at <= :latest_credible_expiry
RETURNING *;

-- name: release_worktree(id, version, lease_owner, lease_token, now, latest_credible_expiry)<!
-- Set a leased worktree free. No row: the lease is lost.
UPDATE worktrees
SET
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    version = version + 1,
    updated_at = :now
WHERE
    id = :id
    AND version = :version
    AND lease_owner = :lease_owner
    AND lease_token = :lease_token
    AND lease_expires_at > :now
    AND lease_expires_at <= :latest_credible_expiry
RETURNING *;

-- name: abandon_worktree(repository_id, lease_token, now)!
-- Give back what a cancelled caller took without ever seeing the answer.
UPDATE worktrees
SET
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    version = version + 1,
    updated_at = :now
WHERE repository_id = :repository_id AND lease_token = :lease_token;

-- name: worktree_is_leased(id, version, lease_owner, lease_token, now, latest_credible_expiry)^
-- The guard of a transaction. No row: the lease is lost.
-- Needs: one writer, or the lease may be taken over before the transaction commits.
SELECT id
FROM worktrees
WHERE
    id = :id
    AND version = :version
    AND lease_owner = :lease_owner
    AND lease_token = :lease_token
    AND lease_expires_at > :now
    AND lease_expires_at <= :latest_credible_expiry;

-- name: retire_worktree(id, now, latest_credible_expiry)<!
-- Retire a worktree that nobody holds. No row: it is held, or gone.
UPDATE worktrees
SET
    state = 'retired',
    lease_owner = NULL,
    lease_token = NULL,
    leased_at = NULL,
    lease_expires_at = NULL,
    version = version + 1,
    updated_at = :now
WHERE
    id = :id
    AND (lease_expires_at IS NULL OR lease_expires_at <= :now OR lease_expires_at > :latest_credible_expiry)
RETURNING *;

-- name: reinstate_worktree(id, now)<!
-- Reinstate a retired worktree. No row: it is not retired.
UPDATE worktrees
SET
    state = 'ready',
    version = version + 1,
    updated_at = :now
WHERE id = :id AND state = 'retired'
RETURNING *;

-- name: delete_worktree(id, now, latest_credible_expiry)<!
-- Forget a worktree that nobody holds; its version stays spent. No row: it is held, or gone.
DELETE FROM worktrees
WHERE
    id = :id
    AND (lease_expires_at IS NULL OR lease_expires_at <= :now OR lease_expires_at > :latest_credible_expiry)
RETURNING *;

-- name: weigh_worktree(id, limit)^
-- How many sessions name a worktree, as far as the limit: whether one statement may delete it.
SELECT
    count(*) AS related_rows,
    0 AS bytes
FROM
    (
        SELECT s.id
        FROM sessions AS s
        WHERE s.worktree_id = :id
        LIMIT :limit -- noqa: AM09
    ) AS w;

-- name: mark_worktree_deletion(id, now)!
-- Show that the worktree is being deleted. One that was left half deleted is marked already.
INSERT INTO deletions (resource, resource_id, created_at)
VALUES ('worktrees', :id, :now)
ON CONFLICT (resource, resource_id) DO NOTHING;

-- name: leave_worktree(id, now, limit)<!
-- A piece of a deletion: sessions forget the worktree that they ran in. No row: none names it.
UPDATE sessions
SET
    worktree_id = NULL,
    updated_at = :now
WHERE
    id IN (
        SELECT s.id
        FROM sessions AS s
        WHERE s.worktree_id = :id
        LIMIT :limit -- noqa: AM09
    )
RETURNING id;
