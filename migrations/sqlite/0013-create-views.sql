-- 0013-create-views: the question that people ask in the sqlite3 shell.
--
-- Why:      how a session goes should not take a join to find out.
-- Locks:    none (view).
-- Rollback: drops the view; no data is lost.
--
-- depends: 0012-create-lease-waiters

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
