-- lease_waiters: the queues for what is leased, first come first served.
-- A ticket is live while :now < expires_at <= :latest_credible_ticket. Its waiter keeps it alive, so that a
-- dead waiter blocks nobody. A later expiry was written by a clock that was ahead and is not believed; the
-- waiter, if it is alive, soon rewrites it.

-- name: create_lease_waiter(id, resource, resource_id, owner, created_at, expires_at)<!
-- Join the queue.
INSERT INTO lease_waiters (id, resource, resource_id, owner, created_at, expires_at)
VALUES (:id, :resource, :resource_id, :owner, :created_at, :expires_at)
RETURNING *;

-- name: keep_lease_waiter(id, expires_at)<!
-- Keep a place in the queue. No row: the ticket expired and was removed.
UPDATE lease_waiters
SET expires_at = :expires_at
WHERE id = :id
RETURNING *;

-- name: delete_lease_waiter(id)!
-- Leave the queue, served or not.
DELETE FROM lease_waiters
WHERE id = :id;

-- name: delete_expired_lease_waiters(resource, resource_id, now, latest_credible_ticket)!
-- Clear away the tickets of those who died waiting.
DELETE FROM lease_waiters
WHERE
    resource = :resource
    AND resource_id = :resource_id
    AND (expires_at <= :now OR expires_at > :latest_credible_ticket);

-- name: list_lease_waiters(resource, resource_id, now, latest_credible_ticket, after, limit)
-- The queue as it stands: live tickets in order.
SELECT *
FROM lease_waiters
WHERE
    resource = :resource
    AND resource_id = :resource_id
    AND expires_at > :now
    AND expires_at <= :latest_credible_ticket
    AND position > :after
ORDER BY position
LIMIT :limit;
