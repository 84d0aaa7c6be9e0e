-- 0013-create-views: the questions that people ask in the sqlite3 shell.
--
-- Why:      who holds what, and how a session goes, should not take a join to find out.
-- Locks:    none (views).
-- Rollback: drops the views; no data is lost.
--
-- depends: 0012-create-lease-waiters

CREATE VIEW IF NOT EXISTS active_leases AS
-- Every lease and lock that has a holder, one row each. One that has expired and was not taken over
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
INNER JOIN projects AS p ON l.project_id = p.id;

CREATE VIEW IF NOT EXISTS session_overview AS
-- Every session with what it has produced so far. commands_failed counts those that timed out as well.
SELECT
    s.id,
    s.session_type,
    s.status,
    s.mode,
    r.name AS repository,
    s.project_path,
    s.created_at,
    s.updated_at,
    s.completed_at,
    s.error_message,
    (
        SELECT count(*) FROM steps AS st
        WHERE st.session_id = s.id
    ) AS steps,
    (
        SELECT count(*)
        FROM steps AS st
        WHERE st.session_id = s.id AND st.status = 'completed'
    ) AS steps_completed,
    (
        SELECT count(*) FROM commands AS c
        WHERE c.session_id = s.id
    ) AS commands,
    (
        SELECT count(*)
        FROM commands AS c
        WHERE c.session_id = s.id AND c.status IN ('failed', 'timeout')
    ) AS commands_failed,
    (
        SELECT count(*) FROM artifacts AS a
        WHERE a.session_id = s.id
    ) AS artifacts,
    (
        SELECT count(*) FROM events AS e
        WHERE e.session_id = s.id
    ) AS events,
    le.created_at AS last_event_at,
    le.message AS last_event
FROM sessions AS s
LEFT JOIN repositories AS r ON s.repository_id = r.id
LEFT JOIN events AS le
    ON le.position = (
        SELECT max(e.position) FROM events AS e
        WHERE e.session_id = s.id
    );
