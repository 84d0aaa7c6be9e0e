-- project_locks: who has a project to itself, and until when.
-- A free project has no row. A lock is live while :now < expires_at <= :latest_credible_expiry, as a worktree's lease.

-- name: acquire_project_lock(id, project_id, session_id, acquired_at, expires_at, position, latest_credible_expiry, latest_credible_ticket)<!
-- Lock a free project, or take over an expired lock, unless another waiter is ahead in the queue.
-- The number continues that of the lock taken over, or starts above that of every lock that is gone.
-- No row: the project is locked, a waiter is ahead, or the session may not lock it.
-- Needs: one writer, or the session may end meanwhile, and a deleted lock raise the floor.
INSERT INTO project_locks (id, project_id, session_id, acquired_at, expires_at, fencing_number)
SELECT
    :id,
    :project_id,
    :session_id,
    :acquired_at,
    :expires_at,
    f.number + 1
FROM fencing_floors AS f
WHERE
    f.resource = 'project_locks'
    AND EXISTS (
        SELECT 1
        FROM sessions AS s
        INNER JOIN projects AS p ON s.project_path = p.path
        WHERE
            s.id = :session_id
            AND p.id = :project_id
            AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
    )
    AND NOT EXISTS (
        SELECT 1
        FROM lease_waiters AS l
        WHERE
            l.resource = 'project_locks'
            AND l.resource_id = :project_id
            AND l.position < :position
            AND l.expires_at > :acquired_at
            AND l.expires_at <= :latest_credible_ticket
    )
ON CONFLICT (project_id) DO UPDATE
SET
    id = excluded.id,
    session_id = excluded.session_id,
    acquired_at = excluded.acquired_at,
    expires_at = excluded.expires_at,
    fencing_number = project_locks.fencing_number + 1
WHERE
project_locks.expires_at <= excluded.acquired_at
OR project_locks.expires_at > :latest_credible_expiry
RETURNING *;

-- name: project_lock_is_available(project_id, session_id, position, now, latest_credible_expiry, latest_credible_ticket)$
-- Whether acquire_project_lock would end the wait, without a write: the project is free, or the session
-- may not lock it any more. No row: the waiter at this position keeps waiting.
SELECT 1
FROM projects AS p
WHERE
    p.id = :project_id
    AND (
        (
            NOT EXISTS (
                SELECT 1
                FROM project_locks AS k
                WHERE
                    k.project_id = :project_id
                    AND k.expires_at > :now
                    AND k.expires_at <= :latest_credible_expiry
            )
            AND NOT EXISTS (
                SELECT 1
                FROM lease_waiters AS l
                WHERE
                    l.resource = 'project_locks'
                    AND l.resource_id = :project_id
                    AND l.position < :position
                    AND l.expires_at > :now
                    AND l.expires_at <= :latest_credible_ticket
            )
        )
        OR NOT EXISTS (
            SELECT 1
            FROM sessions AS s
            WHERE
                s.id = :session_id
                AND s.project_path = p.path
                AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
        )
    );

-- name: session_may_lock(project_id, session_id)$
-- Tells a session that must wait for the project from one that is never to have it.
-- No row: the session has ended, or is not of this project.
SELECT 1
FROM sessions AS s
INNER JOIN projects AS p ON s.project_path = p.path
WHERE
    s.id = :session_id
    AND p.id = :project_id
    AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused');

-- name: get_project_lock(id)^
-- No row: the lock was released or taken over.
SELECT *
FROM project_locks
WHERE id = :id;

-- name: find_project_lock(project_id)^
-- No row: the project is free.
SELECT *
FROM project_locks
WHERE project_id = :project_id;

-- name: list_project_locks_by_session(session_id)
-- The locks that a session holds or has left behind: one, or a handful, and so in no order.
SELECT *
FROM project_locks
WHERE session_id = :session_id;

-- name: count_live_project_locks(now, latest_credible_expiry)$
-- How many projects are locked.
SELECT count(*)
FROM project_locks
WHERE expires_at > :now AND expires_at <= :latest_credible_expiry;

-- name: count_expired_project_locks(now, latest_credible_expiry)$
-- The number of locks that expired and were not taken over.
SELECT count(*)
FROM project_locks
WHERE expires_at <= :now OR expires_at > :latest_credible_expiry;

-- name: list_expired_project_locks(now, latest_credible_expiry, after, after_id, limit)
-- Locks that count as expired and were not taken over, the longest first.
SELECT *
FROM project_locks
WHERE (expires_at <= :now OR expires_at > :latest_credible_expiry) AND (expires_at, id) > (:after, :after_id)
ORDER BY expires_at, id
LIMIT :limit;

-- name: renew_project_lock(id, session_id, fencing_number, expires_at, now, latest_credible_expiry)<!
-- Move the end of a live lock. No row: it is lost, or its session has ended.
-- A clock that is back before the lock was granted leaves the expiry where it is.
-- Needs: one writer, or the session may end meanwhile.
UPDATE project_locks
SET expires_at = CASE WHEN :expires_at > acquired_at THEN :expires_at ELSE expires_at END
WHERE
    id = :id
    AND session_id = :session_id
    AND fencing_number = :fencing_number
    AND expires_at > :now
    AND expires_at <= :latest_credible_expiry
    AND EXISTS (
        SELECT 1
        FROM sessions AS s
        WHERE
            s.id = project_locks.session_id
            AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')
    )
RETURNING *;

-- name: release_project_lock(id, session_id, fencing_number, now, latest_credible_expiry)<!
-- Set the project free; the number stays spent. No row: the lock is lost.
DELETE FROM project_locks
WHERE
    id = :id
    AND session_id = :session_id
    AND fencing_number = :fencing_number
    AND expires_at > :now
    AND expires_at <= :latest_credible_expiry
RETURNING *;

-- name: abandon_project_lock(id)!
-- Give back what a cancelled caller took without ever seeing the answer.
DELETE FROM project_locks
WHERE id = :id;

-- name: project_is_locked(id, session_id, fencing_number, now, latest_credible_expiry)^
-- The guard of a transaction. No row: the lock is lost.
-- Needs: one writer, or the lock may be taken over before the transaction commits.
SELECT id
FROM project_locks
WHERE
    id = :id
    AND session_id = :session_id
    AND fencing_number = :fencing_number
    AND expires_at > :now
    AND expires_at <= :latest_credible_expiry;
