-- worktrees: the statements that look for a free one.
-- The text '' stands for "free" in the indexes ix_worktrees_free*, so that free worktrees sort before
-- expired ones, each kind by how long it has waited, and one range finds both.

-- name: acquire_worktree(repository_id, commit_sha, environment_hashes, position, lease_owner, lease_token, lease_expires_at, now, latest_credible_expiry, latest_credible_ticket)<!
-- Differs: '' as the smallest time has no counterpart in PostgreSQL's timestamptz.
-- Take the best free worktree: at the same commit and environment, at the same commit, in the same
-- environment, or any; within each the least recently used. Waiters in the queue with a smaller
-- position come first: there must be one free worktree more than there are of them.
-- No row: none is free for this caller.
WITH line AS (
    SELECT count(*) AS ahead
    FROM lease_waiters
    WHERE
        resource = 'worktrees'
        AND resource_id = :repository_id
        AND position < :position
        AND expires_at > :now
        AND expires_at <= :latest_credible_ticket
)

UPDATE worktrees
SET
    lease_owner = :lease_owner,
    lease_token = :lease_token,
    leased_at = :now,
    lease_expires_at = :lease_expires_at,
    version = version + 1,
    updated_at = :now
WHERE
    id = coalesce(
        (
            SELECT w.id
            FROM worktrees AS w
            WHERE
                w.state = 'ready'
                AND w.repository_id = :repository_id
                AND w.commit_sha = :commit_sha
                AND w.environment_hashes = :environment_hashes
                AND w.environment_hashes <> '{}'
                AND coalesce(w.lease_expires_at, '') <= :now
            ORDER BY coalesce(w.lease_expires_at, ''), w.updated_at
            LIMIT 1
        ),
        (
            SELECT w.id
            FROM worktrees AS w
            WHERE
                w.state = 'ready'
                AND w.repository_id = :repository_id
                AND w.commit_sha = :commit_sha
                AND coalesce(w.lease_expires_at, '') <= :now
            ORDER BY coalesce(w.lease_expires_at, ''), w.updated_at
            LIMIT 1
        ),
        (
            SELECT w.id
            FROM worktrees AS w
            WHERE
                w.state = 'ready'
                AND w.repository_id = :repository_id
                AND w.environment_hashes = :environment_hashes
                AND w.environment_hashes <> '{}'
                AND coalesce(w.lease_expires_at, '') <= :now
            ORDER BY coalesce(w.lease_expires_at, ''), w.updated_at
            LIMIT 1
        ),
        (
            SELECT w.id
            FROM worktrees AS w
            WHERE
                w.state = 'ready'
                AND w.repository_id = :repository_id
                AND coalesce(w.lease_expires_at, '') <= :now
            ORDER BY coalesce(w.lease_expires_at, ''), w.updated_at
            LIMIT 1
        ),
        (
            SELECT w.id
            FROM worktrees AS w
            WHERE
                w.state = 'ready'
                AND w.repository_id = :repository_id
                AND coalesce(w.lease_expires_at, '') > :latest_credible_expiry
            ORDER BY coalesce(w.lease_expires_at, ''), w.updated_at
            LIMIT 1
        )
    )
    AND (
        EXISTS (
            SELECT 1
            FROM worktrees AS w
            WHERE
                w.state = 'ready'
                AND w.repository_id = :repository_id
                AND coalesce(w.lease_expires_at, '') <= :now
            LIMIT -- noqa: AM09
                1
                OFFSET (SELECT l.ahead FROM line AS l)
        )
        OR EXISTS (
            SELECT 1
            FROM worktrees AS w
            WHERE
                w.state = 'ready'
                AND w.repository_id = :repository_id
                AND coalesce(w.lease_expires_at, '') > :latest_credible_expiry
            LIMIT -- noqa: AM09
                1
                OFFSET (SELECT l.ahead FROM line AS l)
        )
    )
RETURNING *;

-- name: worktree_is_available(repository_id, position, now, latest_credible_expiry, latest_credible_ticket)$
-- Differs: as acquire_worktree, whose condition it repeats for those who wait, without a write.
-- No row: none is free for a waiter at this position.
WITH line AS (
    SELECT count(*) AS ahead
    FROM lease_waiters
    WHERE
        resource = 'worktrees'
        AND resource_id = :repository_id
        AND position < :position
        AND expires_at > :now
        AND expires_at <= :latest_credible_ticket
)

SELECT 1
WHERE
    EXISTS (
        SELECT 1
        FROM worktrees AS w
        WHERE
            w.state = 'ready'
            AND w.repository_id = :repository_id
            AND coalesce(w.lease_expires_at, '') <= :now
        LIMIT -- noqa: AM09
            1
            OFFSET (SELECT l.ahead FROM line AS l)
    )
    OR EXISTS (
        SELECT 1
        FROM worktrees AS w
        WHERE
            w.state = 'ready'
            AND w.repository_id = :repository_id
            AND coalesce(w.lease_expires_at, '') > :latest_credible_expiry
        LIMIT -- noqa: AM09
            1
            OFFSET (SELECT l.ahead FROM line AS l)
    );
