-- audit_chains: where the chains of events and tool executions end, and what was purged of them.
-- Triggers keep it; the statements here read it, and write checkpoints.

-- name: get_audit_chain(resource, resource_id)^
-- No row: nothing was ever chained there.
SELECT *
FROM audit_chains
WHERE resource = :resource AND resource_id = :resource_id;

-- name: list_audit_chains(resource, after_place, limit)
-- A page of the chains of a table, by session or task.
SELECT *
FROM audit_chains
WHERE resource = :resource AND resource_id > :after_place
ORDER BY resource_id
LIMIT :limit;

-- name: note_audit_head(run, number, resource, resource_id)*!
-- Note the state of a chain for a checkpoint, unless the latest checkpoint has it already: states never
-- come back, so that any checkpoint with this one is the latest.
INSERT INTO audit_heads (
    run, resource, resource_id, number, unchained, length, last, purged, base, purged_at
)
SELECT
    :run AS run,
    c.resource,
    c.resource_id,
    :number AS number,
    c.unchained,
    c.length,
    c.last,
    c.purged,
    c.base,
    c.purged_at
FROM audit_chains AS c
WHERE
    c.resource = :resource
    AND c.resource_id = :resource_id
    AND NOT EXISTS (
        SELECT 1
        FROM audit_heads AS h
        INNER JOIN audit_checkpoints AS k ON h.run = k.run
        WHERE
            h.resource = :resource
            AND h.resource_id = :resource_id
            AND h.length = c.length
            AND h.last = c.last
            AND h.purged = c.purged
            AND h.base = c.base
            AND h.unchained = c.unchained
            AND coalesce(h.purged_at, '') = coalesce(c.purged_at, '')
    )
ON CONFLICT (run, resource, resource_id) DO NOTHING;

-- name: create_audit_checkpoint(number, digest, previous, run, position, entry, chains, links, heads, heads_hash, entries_hash, schema_hash, now, next_key, signature)<!
-- Make a checkpoint of what a run noted. No row: another checkpoint was made meanwhile.
-- Needs: one writer, or two could make the same checkpoint.
INSERT INTO audit_checkpoints (
    number, digest, previous, run, position, entry, chains, links, heads, heads_hash, entries_hash,
    schema_hash, created_at, next_key, signature
)
SELECT
    :number AS number,
    :digest AS digest,
    :previous AS previous,
    :run AS run,
    :position AS position,
    :entry AS entry,
    :chains AS chains,
    :links AS links,
    :heads AS heads,
    :heads_hash AS heads_hash,
    :entries_hash AS entries_hash,
    :schema_hash AS schema_hash,
    :now AS created_at,
    :next_key AS next_key,
    :signature AS signature
WHERE
    NOT EXISTS (
        SELECT 1 FROM audit_checkpoints AS k
        WHERE k.number >= :number
    )
RETURNING number;

-- name: delete_audit_heads(number, after_run, until_run, limit)<!
-- A piece of what runs between two others left behind without a checkpoint: those that died, and those
-- that cannot end any more because a later one has. The range leaves out the run that has just ended,
-- which may have noted every chain there is. No row: none is left.
DELETE FROM audit_heads
WHERE
    (run, resource, resource_id) IN (
        SELECT
            h.run,
            h.resource,
            h.resource_id
        FROM audit_heads AS h
        WHERE
            h.run > :after_run
            AND h.run < :until_run
            AND h.number <= :number
            AND NOT EXISTS (
                SELECT 1 FROM audit_checkpoints AS k
                WHERE k.run = h.run
            )
        ORDER BY h.run
        LIMIT :limit
    )
RETURNING run;

-- name: delete_audit_change(task_id)*!
-- A checkpoint has noted the task's chain as it is.
-- Needs: one writer, or the chain may grow meanwhile.
DELETE FROM audit_changes
WHERE
    task_id = :task_id
    AND EXISTS (
        SELECT 1
        FROM audit_chains AS c
        INNER JOIN audit_heads AS h ON c.resource = h.resource AND c.resource_id = h.resource_id
        INNER JOIN audit_checkpoints AS k ON h.run = k.run
        WHERE c.resource = 'tool_executions' AND c.resource_id = :task_id AND c.length = h.length
    );

-- name: get_latest_audit_checkpoint()^
-- The checkpoint that the next one follows. No row: there is none yet.
SELECT
    number,
    digest,
    previous,
    run,
    position,
    entry,
    chains,
    links,
    heads,
    heads_hash,
    entries_hash,
    schema_hash,
    created_at,
    next_key,
    signature
FROM audit_checkpoints
ORDER BY number DESC
LIMIT 1;

-- name: get_latest_audit_signature()^
-- The latest signature, which names the key of the next. No row: nothing was signed yet.
SELECT
    next_key,
    signature
FROM audit_checkpoints
WHERE signature IS NOT NULL AND next_key IS NOT NULL
ORDER BY number DESC
LIMIT 1;

-- name: list_audit_checkpoints(after_number, limit)
-- Scans: pages of an audit, which reads every checkpoint.
-- A page of the checkpoints, the oldest first.
SELECT
    number,
    digest,
    previous,
    run,
    position,
    entry,
    chains,
    links,
    heads,
    heads_hash,
    entries_hash,
    schema_hash,
    created_at,
    next_key,
    signature
FROM audit_checkpoints
WHERE number > :after_number
ORDER BY number
LIMIT :limit;
