-- sessions: the statement that SQLite words in its own way.

-- name: list_active_sessions(after_id, limit)
-- Differs: without statistics SQLite takes ix_sessions_status, reads every active session and sorts them;
-- PostgreSQL knows how many there are, and has no INDEXED BY.
-- A page of the sessions that wait or run, oldest first.
SELECT *
FROM sessions INDEXED BY ix_sessions_active -- noqa: PRS
WHERE status IN ('pending', 'in_progress') AND id > :after_id
ORDER BY id
LIMIT :limit;
