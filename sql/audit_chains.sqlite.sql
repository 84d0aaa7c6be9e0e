-- audit_chains: the rows that the chains cover, as they are in the file.

-- name: list_audited_events(after_chain, after_position, limit)
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
LIMIT :limit;

-- name: list_audited_events_of(resource_id, after_position, limit)
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
LIMIT :limit;

-- name: list_audited_tool_executions(after_chain, after_row, limit)
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
LIMIT :limit;

-- name: list_audited_tool_executions_of(resource_id)
-- Differs: text is read as bytes, tampered text may not be UTF-8.
-- Scans: reads the whole chain.
-- All tool executions of one task and the end of its chain, read at once, for a second look.
SELECT
    c.unchained,
    c.length,
    c.last,
    c.purged,
    c.base,
    cast(r.task_id AS BLOB) AS task_id,
    cast(r.id AS BLOB) AS id,
    cast(r.tool_name AS BLOB) AS tool_name,
    cast(r.arguments AS BLOB) AS arguments,
    cast(r.output AS BLOB) AS output,
    cast(r.status AS BLOB) AS status,
    cast(r.error AS BLOB) AS error,
    cast(r.created_at AS BLOB) AS created_at,
    cast(r.completed_at AS BLOB) AS completed_at,
    cast(r.duration_ms AS BLOB) AS duration_ms,
    r.sequence,
    cast(r.hash AS BLOB) AS hash,
    r.finished_sequence,
    cast(r.finished_hash AS BLOB) AS finished_hash
FROM (SELECT :resource_id AS resource_id) AS asked
LEFT JOIN audit_chains AS c ON asked.resource_id = c.resource_id AND c.resource = 'tool_executions'
LEFT JOIN tool_executions AS r ON asked.resource_id = r.task_id
ORDER BY r.id;
