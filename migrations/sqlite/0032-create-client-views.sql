-- 0032-create-client-views: which clients have fallen silent, for the sqlite3 shell.
--
-- Why:      who looks after an orchestrator asks this first.
-- Locks:    none (view).
-- Rollback: drops the view; no data is lost.
--
-- depends: 0031-create-audit-chains

CREATE VIEW IF NOT EXISTS stale_clients AS
-- Every open connection that nothing was heard of for five minutes, the longest silent first.
SELECT
    c.id,
    c.client_id,
    c.user_id,
    c.connection_type,
    c.created_at,
    c.last_heartbeat,
    cast((julianday('now') - julianday(c.last_heartbeat)) * 86400 AS INTEGER) AS silent_seconds
FROM client_sessions AS c
WHERE c.is_active = 1 AND c.last_heartbeat < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-5 minutes')
ORDER BY c.last_heartbeat;
