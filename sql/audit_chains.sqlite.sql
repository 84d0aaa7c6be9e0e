-- audit_chains: the rows that the chains cover, as they are in the file.

-- name: list_chain_states(resource, after_chain, limit)
-- Differs: text is read as bytes, since a damaged id may not be UTF-8.
-- Scans: pages of an audit, which reads every chain.
-- A page of the chains of a table, each with whether its session or task is still there, whether
-- that is being deleted in pieces, and whether checkpoints passed it over: of a session, the latest
-- checkpoint does not cover an event that is before its end; of a task, nothing tells the next one
-- that there is more than was noted.
SELECT
    cast(c.resource_id AS BLOB) AS resource_id,
    c.unchained,
    c.length,
    cast(c.last AS BLOB) AS last,
    c.purged,
    cast(c.base AS BLOB) AS base,
    cast(c.purged_at AS BLOB) AS purged_at,
    EXISTS (
        SELECT 1 FROM sessions AS s
        WHERE c.resource = 'events' AND s.id = c.resource_id
    )
    OR EXISTS (
        SELECT 1 FROM tasks AS t
        WHERE c.resource = 'tool_executions' AND t.id = c.resource_id
    ) AS present,
    (
        SELECT count(*) FROM deletions AS d
        WHERE
            d.resource = CASE c.resource WHEN 'events' THEN 'sessions' ELSE 'tasks' END
            AND d.resource_id = c.resource_id
    ) AS deleting,
    CASE c.resource
        WHEN 'events'
            THEN EXISTS (
                SELECT 1 FROM events AS e
                WHERE
                    e.session_id = c.resource_id
                    AND e.hash IS NOT NULL
                    AND e.position > coalesce(
                        (
                            SELECT cast(h.last AS INTEGER)
                            FROM audit_heads AS h
                            INNER JOIN audit_checkpoints AS k ON h.run = k.run
                            WHERE h.resource = c.resource AND h.resource_id = c.resource_id
                            ORDER BY h.number DESC
                            LIMIT 1
                        ),
                        0
                    )
                    AND e.position <= (
                        SELECT k.position FROM audit_checkpoints AS k
                        WHERE k.number = (SELECT max(m.number) FROM audit_checkpoints AS m)
                    )
            )
        ELSE
            c.length > coalesce(
                (
                    SELECT h.length
                    FROM audit_heads AS h
                    INNER JOIN audit_checkpoints AS k ON h.run = k.run
                    WHERE h.resource = c.resource AND h.resource_id = c.resource_id
                    ORDER BY h.number DESC
                    LIMIT 1
                ),
                0
            )
            AND NOT EXISTS (
                SELECT 1 FROM audit_changes AS n
                WHERE n.task_id = c.resource_id
            )
            AND NOT EXISTS (
                SELECT 1 FROM audit_entries AS a
                WHERE
                    a.resource = c.resource
                    AND a.resource_id = c.resource_id
                    AND a.number > coalesce(
                        (
                            SELECT k.entry FROM audit_checkpoints AS k
                            WHERE k.number = (SELECT max(m.number) FROM audit_checkpoints AS m)
                        ),
                        0
                    )
            )
    END AS passed_over
FROM audit_chains AS c
WHERE c.resource = :resource AND c.resource_id > cast(:after_chain AS TEXT)
ORDER BY c.resource_id
LIMIT :limit;

-- name: list_chain_states_of(resource, resource_id)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- The state of one chain, for a second look; as list_chain_states has it.
SELECT
    cast(c.resource_id AS BLOB) AS resource_id,
    c.unchained,
    c.length,
    cast(c.last AS BLOB) AS last,
    c.purged,
    cast(c.base AS BLOB) AS base,
    cast(c.purged_at AS BLOB) AS purged_at,
    EXISTS (
        SELECT 1 FROM sessions AS s
        WHERE c.resource = 'events' AND s.id = c.resource_id
    )
    OR EXISTS (
        SELECT 1 FROM tasks AS t
        WHERE c.resource = 'tool_executions' AND t.id = c.resource_id
    ) AS present,
    (
        SELECT count(*) FROM deletions AS d
        WHERE
            d.resource = CASE c.resource WHEN 'events' THEN 'sessions' ELSE 'tasks' END
            AND d.resource_id = c.resource_id
    ) AS deleting,
    CASE c.resource
        WHEN 'events'
            THEN EXISTS (
                SELECT 1 FROM events AS e
                WHERE
                    e.session_id = c.resource_id
                    AND e.hash IS NOT NULL
                    AND e.position > coalesce(
                        (
                            SELECT cast(h.last AS INTEGER)
                            FROM audit_heads AS h
                            INNER JOIN audit_checkpoints AS k ON h.run = k.run
                            WHERE h.resource = c.resource AND h.resource_id = c.resource_id
                            ORDER BY h.number DESC
                            LIMIT 1
                        ),
                        0
                    )
                    AND e.position <= (
                        SELECT k.position FROM audit_checkpoints AS k
                        WHERE k.number = (SELECT max(m.number) FROM audit_checkpoints AS m)
                    )
            )
        ELSE
            c.length > coalesce(
                (
                    SELECT h.length
                    FROM audit_heads AS h
                    INNER JOIN audit_checkpoints AS k ON h.run = k.run
                    WHERE h.resource = c.resource AND h.resource_id = c.resource_id
                    ORDER BY h.number DESC
                    LIMIT 1
                ),
                0
            )
            AND NOT EXISTS (
                SELECT 1 FROM audit_changes AS n
                WHERE n.task_id = c.resource_id
            )
            AND NOT EXISTS (
                SELECT 1 FROM audit_entries AS a
                WHERE
                    a.resource = c.resource
                    AND a.resource_id = c.resource_id
                    AND a.number > coalesce(
                        (
                            SELECT k.entry FROM audit_checkpoints AS k
                            WHERE k.number = (SELECT max(m.number) FROM audit_checkpoints AS m)
                        ),
                        0
                    )
            )
    END AS passed_over
FROM audit_chains AS c
WHERE c.resource = :resource AND c.resource_id = :resource_id;

-- name: list_chain_heads(resource, after_chain, after_number, limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of an audit, which reads every checkpoint.
-- A page of what checkpoints noted of a table's chains, chain by chain, the oldest first.
SELECT
    cast(h.resource_id AS BLOB) AS resource_id,
    h.number,
    h.unchained,
    h.length,
    cast(h.last AS BLOB) AS last,
    h.purged,
    cast(h.base AS BLOB) AS base,
    cast(h.purged_at AS BLOB) AS purged_at
FROM audit_heads AS h
INNER JOIN audit_checkpoints AS k ON h.run = k.run
WHERE h.resource = :resource AND (h.resource_id, h.number) > (cast(:after_chain AS TEXT), :after_number)
ORDER BY h.resource_id, h.number
LIMIT :limit;

-- name: list_chain_heads_of(resource, resource_id)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- What checkpoints noted of one chain, for a second look; as list_chain_heads has it.
SELECT
    cast(h.resource_id AS BLOB) AS resource_id,
    h.number,
    h.unchained,
    h.length,
    cast(h.last AS BLOB) AS last,
    h.purged,
    cast(h.base AS BLOB) AS base,
    cast(h.purged_at AS BLOB) AS purged_at
FROM audit_heads AS h
INNER JOIN audit_checkpoints AS k ON h.run = k.run
WHERE h.resource = :resource AND h.resource_id = :resource_id
ORDER BY h.number;

-- name: list_run_heads(run, after_resource, after_chain, number, limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of what a checkpoint notes, which may be every chain.
-- A page of what one run noted, each with how long the chain was at the checkpoint before.
SELECT
    cast(h.resource AS BLOB) AS resource,
    cast(h.resource_id AS BLOB) AS resource_id,
    h.unchained,
    h.length,
    cast(h.last AS BLOB) AS last,
    h.purged,
    cast(h.base AS BLOB) AS base,
    cast(h.purged_at AS BLOB) AS purged_at,
    (
        SELECT b.length
        FROM audit_heads AS b
        INNER JOIN audit_checkpoints AS k ON b.run = k.run
        WHERE b.resource = h.resource AND b.resource_id = h.resource_id AND b.number < :number
        ORDER BY b.number DESC
        LIMIT 1
    ) AS length_before
FROM audit_heads AS h
WHERE
    h.run = :run
    AND (h.resource, h.resource_id) > (cast(:after_resource AS TEXT), cast(:after_chain AS TEXT))
ORDER BY h.resource, h.resource_id
LIMIT :limit;

-- name: list_audit_entries(after_number, until_number, limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of an audit, which reads every entry.
-- A page of the entries in their order.
SELECT
    number,
    cast(kind AS BLOB) AS kind,
    cast(resource AS BLOB) AS resource,
    cast(resource_id AS BLOB) AS resource_id,
    unchained,
    length,
    purged,
    cast(created_at AS BLOB) AS created_at
FROM audit_entries
WHERE number > :after_number AND number <= :until_number
ORDER BY number
LIMIT :limit;

-- name: list_chain_entries(resource, after_chain, after_number, limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of an audit, which reads every entry.
-- A page of the entries of a table's chains, chain by chain.
SELECT
    cast(resource_id AS BLOB) AS resource_id,
    number,
    cast(kind AS BLOB) AS kind,
    unchained,
    length,
    purged,
    cast(created_at AS BLOB) AS created_at
FROM audit_entries
WHERE
    resource = :resource
    AND kind <> 'start'
    AND (resource_id, number) > (cast(:after_chain AS TEXT), :after_number)
ORDER BY audit_entries.resource_id, audit_entries.number
LIMIT :limit;

-- name: list_chain_entries_of(resource, resource_id)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- The entries of one chain, for a second look; as list_chain_entries has it.
SELECT
    cast(resource_id AS BLOB) AS resource_id,
    number,
    cast(kind AS BLOB) AS kind,
    unchained,
    length,
    purged,
    cast(created_at AS BLOB) AS created_at
FROM audit_entries
WHERE resource = :resource AND resource_id = :resource_id AND kind <> 'start'
ORDER BY number;

-- name: get_audit_extent()^
-- Differs: sqlite_sequence tells how many entries there ever were, and the last position that was given
-- to an event, which may be purged by now.
-- How far history goes: its last position and entry, and up to which position events may lack a hash.
-- No row: never.
SELECT
    max(
        coalesce((SELECT max(e.position) FROM events AS e), 0),
        coalesce(
            (
                SELECT q.seq FROM sqlite_sequence AS q
                WHERE q.name = 'events'
            ),
            0
        )
    ) AS position,
    coalesce(
        (
            SELECT q.seq FROM sqlite_sequence AS q
            WHERE q.name = 'audit_entries'
        ),
        0
    ) AS entry,
    coalesce(
        (
            SELECT a.length FROM audit_entries AS a
            WHERE a.number = 1 AND a.kind = 'start'
        ),
        0
    ) AS unchained_until;

-- name: list_changed_sessions(after_position, until_position, limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of the events since the last checkpoint, which may be many.
-- The sessions of a page of events, each with its last position there.
SELECT
    cast(e.session_id AS BLOB) AS resource_id,
    max(e.position) AS position
FROM (
    SELECT
        position,
        session_id
    FROM events
    WHERE position > :after_position AND position <= :until_position
    ORDER BY events.position
    LIMIT :limit
) AS e
GROUP BY e.session_id;

-- name: list_changed_tasks(after_chain, limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- A page of the tasks whose chains have grown since the last checkpoint.
SELECT cast(task_id AS BLOB) AS task_id
FROM audit_changes
WHERE task_id > cast(:after_chain AS TEXT)
ORDER BY audit_changes.task_id
LIMIT :limit;

-- name: list_schema()
-- Differs: SQLite keeps its schema as the text of its statements.
-- The schema as it is, with the triggers that write history.
SELECT
    type,
    name,
    tbl_name,
    sql
FROM sqlite_schema
WHERE sql IS NOT NULL
ORDER BY type, name;

-- name: list_audited_events(after_chain, after_position, limit, byte_limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of an audit, which reads every event.
-- A page of all events, session by session, each in the order of its chain.
SELECT
    cast(session_id AS BLOB) AS session_id,
    position,
    cast(id AS BLOB) AS id,
    cast(event_type AS BLOB) AS event_type,
    cast(level AS BLOB) AS level,
    cast(message AS BLOB) AS message,
    cast(context AS BLOB) AS context,
    cast(created_at AS BLOB) AS created_at,
    cast(hash AS BLOB) AS hash
FROM events
WHERE (session_id, position) > (cast(:after_chain AS TEXT), :after_position)
ORDER BY events.session_id, events.position
LIMIT
    1 + (
        SELECT count(*)
        FROM (
            SELECT sum(p.bytes) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
            FROM (
                SELECT length(cast(message AS BLOB)) + length(cast(context AS BLOB)) AS bytes
                FROM events
                WHERE (session_id, position) > (cast(:after_chain AS TEXT), :after_position)
                ORDER BY events.session_id, events.position
                LIMIT :limit - 1
            ) AS p
        ) AS b
        WHERE b.bytes < :byte_limit
    );

-- name: list_audited_events_of(resource_id, after_position, limit, byte_limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of an audit, which reads the whole chain.
-- A page of the events of one session, in the order of its chain, for a second look.
SELECT
    cast(session_id AS BLOB) AS session_id,
    position,
    cast(id AS BLOB) AS id,
    cast(event_type AS BLOB) AS event_type,
    cast(level AS BLOB) AS level,
    cast(message AS BLOB) AS message,
    cast(context AS BLOB) AS context,
    cast(created_at AS BLOB) AS created_at,
    cast(hash AS BLOB) AS hash
FROM events
WHERE session_id = :resource_id AND position > :after_position
ORDER BY events.position
LIMIT
    1 + (
        SELECT count(*)
        FROM (
            SELECT sum(p.bytes) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
            FROM (
                SELECT length(cast(message AS BLOB)) + length(cast(context AS BLOB)) AS bytes
                FROM events
                WHERE session_id = :resource_id AND position > :after_position
                ORDER BY events.position
                LIMIT :limit - 1
            ) AS p
        ) AS b
        WHERE b.bytes < :byte_limit
    );

-- name: list_audited_tool_executions(after_chain, after_row, limit, byte_limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of an audit, which reads every tool execution.
-- A page of all tool executions, task by task.
SELECT
    cast(task_id AS BLOB) AS task_id,
    cast(id AS BLOB) AS id,
    cast(tool_name AS BLOB) AS tool_name,
    cast(arguments AS BLOB) AS arguments,
    cast(output AS BLOB) AS output,
    cast(status AS BLOB) AS status,
    cast(error AS BLOB) AS error,
    cast(created_at AS BLOB) AS created_at,
    cast(completed_at AS BLOB) AS completed_at,
    cast(duration_ms AS BLOB) AS duration_ms,
    sequence,
    cast(hash AS BLOB) AS hash,
    finished_sequence,
    cast(finished_hash AS BLOB) AS finished_hash
FROM tool_executions
WHERE (task_id, id) > (cast(:after_chain AS TEXT), cast(:after_row AS TEXT))
ORDER BY tool_executions.task_id, tool_executions.id
LIMIT
    1 + (
        SELECT count(*)
        FROM (
            SELECT sum(p.bytes) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
            FROM (
                SELECT
                    length(cast(arguments AS BLOB))
                    + coalesce(length(cast(output AS BLOB)), 0)
                    + coalesce(length(cast(error AS BLOB)), 0) AS bytes
                FROM tool_executions
                WHERE (task_id, id) > (cast(:after_chain AS TEXT), cast(:after_row AS TEXT))
                ORDER BY tool_executions.task_id, tool_executions.id
                LIMIT :limit - 1
            ) AS p
        ) AS b
        WHERE b.bytes < :byte_limit
    );

-- name: list_audited_tool_executions_of(resource_id, after_row, limit, byte_limit)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: pages of an audit, which reads the whole chain.
-- A page of the tool executions of one task, for a second look.
SELECT
    cast(task_id AS BLOB) AS task_id,
    cast(id AS BLOB) AS id,
    cast(tool_name AS BLOB) AS tool_name,
    cast(arguments AS BLOB) AS arguments,
    cast(output AS BLOB) AS output,
    cast(status AS BLOB) AS status,
    cast(error AS BLOB) AS error,
    cast(created_at AS BLOB) AS created_at,
    cast(completed_at AS BLOB) AS completed_at,
    cast(duration_ms AS BLOB) AS duration_ms,
    sequence,
    cast(hash AS BLOB) AS hash,
    finished_sequence,
    cast(finished_hash AS BLOB) AS finished_hash
FROM tool_executions
WHERE task_id = :resource_id AND id > cast(:after_row AS TEXT)
ORDER BY tool_executions.id
LIMIT
    1 + (
        SELECT count(*)
        FROM (
            SELECT sum(p.bytes) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
            FROM (
                SELECT
                    length(cast(arguments AS BLOB))
                    + coalesce(length(cast(output AS BLOB)), 0)
                    + coalesce(length(cast(error AS BLOB)), 0) AS bytes
                FROM tool_executions
                WHERE task_id = :resource_id AND id > cast(:after_row AS TEXT)
                ORDER BY tool_executions.id
                LIMIT :limit - 1
            ) AS p
        ) AS b
        WHERE b.bytes < :byte_limit
    );
