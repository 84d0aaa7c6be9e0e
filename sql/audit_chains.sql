-- audit_chains: where the chains of events and tool executions end, and what was purged of them.
-- Triggers keep it; the statements here read it, and note checkpoints.

-- name: get_audit_chain(resource, resource_id)^
-- No row: nothing was ever chained there.
SELECT
    resource,
    resource_id,
    unchained,
    length,
    last,
    purged,
    base,
    purged_at
FROM audit_chains
WHERE resource = :resource AND resource_id = :resource_id;

-- name: list_audit_chains(resource, after_place, limit)
-- A page of the chains of a table, by session or task.
SELECT
    resource,
    resource_id,
    unchained,
    length,
    last,
    purged,
    base,
    purged_at
FROM audit_chains
WHERE resource = :resource AND resource_id > :after_place
ORDER BY resource_id
LIMIT :limit;

-- name: create_audit_checkpoint(now)!
-- Note where the chains end that have grown since the last checkpoint.
INSERT INTO audit_checkpoints (checkpoint, resource, resource_id, length, last, created_at)
SELECT
    (SELECT coalesce(max(k.checkpoint), 0) + 1 FROM audit_checkpoints AS k) AS checkpoint,
    c.resource,
    c.resource_id,
    c.length,
    c.last,
    :now
FROM audit_chains AS c
WHERE
    NOT EXISTS (
        SELECT 1 FROM audit_checkpoints AS k
        WHERE k.resource = c.resource AND k.resource_id = c.resource_id AND k.length >= c.length
    );

-- name: list_audit_checkpoints(after_checkpoint, after_resource, after_place, limit)
-- Scans: pages of an audit, which reads every checkpoint.
-- A page of what the checkpoints noted, in the order in which their digests cover it.
SELECT
    checkpoint,
    resource,
    resource_id,
    length,
    last
FROM audit_checkpoints
WHERE (checkpoint, resource, resource_id) > (:after_checkpoint, :after_resource, :after_place)
ORDER BY checkpoint, resource, resource_id
LIMIT :limit;
