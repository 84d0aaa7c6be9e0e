-- sessions: what was executed, for whom, and what came of it.
-- status is a state machine: each verb is an UPDATE on the statuses that allow it.

-- name: touch_project(project_id, path, now)!
-- A session registers the project it works on, or touches it: goes with create_session.
INSERT INTO projects (id, path, created_at, updated_at)
VALUES (:project_id, :path, :now, :now)
ON CONFLICT (path)
DO UPDATE SET updated_at = excluded.updated_at;

-- name: create_session(id, session_type, mode, project_path, repository_id, worktree_id, auth_token_id, config, metadata, created_at)<!
-- Open a session, pending.
-- No row: its token is revoked or has expired, or its worktree is retired. One that does not exist is left
-- to the foreign key.
-- Needs: one writer, or its token may be revoked meanwhile, or its worktree retired.
INSERT INTO sessions (
    id,
    session_type,
    mode,
    project_path,
    repository_id,
    worktree_id,
    auth_token_id,
    config,
    metadata,
    created_at,
    updated_at
)
SELECT
    :id,
    :session_type,
    :mode,
    :project_path,
    :repository_id,
    :worktree_id,
    :auth_token_id,
    :config,
    :metadata,
    :created_at,
    :created_at
WHERE
    NOT EXISTS (
        SELECT 1
        FROM auth_tokens AS t
        WHERE t.id = :auth_token_id AND (t.revoked_at IS NOT NULL OR t.expires_at <= :created_at)
    )
    AND NOT EXISTS (
        SELECT 1
        FROM worktrees AS w
        WHERE w.id = :worktree_id AND w.state = 'retired'
    )
RETURNING *;

-- name: get_session(id)^
-- No row: there is no such session.
SELECT *
FROM sessions
WHERE id = :id;

-- name: start_session(id, worktree_id, now)<!
-- Begin the work. No row: it is not pending, or its worktree is retired.
-- Needs: one writer, or its worktree may be retired meanwhile.
UPDATE sessions
SET
    status = 'in_progress',
    worktree_id = coalesce(:worktree_id, worktree_id),
    updated_at = :now
WHERE
    id = :id
    AND status = 'pending'
    AND NOT EXISTS (
        SELECT 1
        FROM worktrees AS w
        WHERE w.id = coalesce(:worktree_id, sessions.worktree_id) AND w.state = 'retired'
    )
RETURNING *;

-- name: pause_session(id, now)<!
-- Interrupt the work. No row: it is not in progress.
UPDATE sessions
SET
    status = 'paused',
    updated_at = :now
WHERE id = :id AND status = 'in_progress'
RETURNING *;

-- name: resume_session(id, now)<!
-- Go on with the work. No row: it is not paused.
UPDATE sessions
SET
    status = 'in_progress',
    updated_at = :now
WHERE id = :id AND status = 'paused'
RETURNING *;

-- name: complete_session(id, result, now)<!
-- End well. No row: it is not in progress.
UPDATE sessions
SET
    status = 'completed',
    result = :result,
    completed_at = :now,
    updated_at = :now
WHERE id = :id AND status = 'in_progress'
RETURNING *;

-- name: fail_session(id, error_message, now)<!
-- End badly. No row: it has ended already.
UPDATE sessions
SET
    status = 'failed',
    error_message = :error_message,
    completed_at = :now,
    updated_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'in_progress' OR status = 'paused')
RETURNING *;

-- name: cancel_session(id, now)<!
-- Call it off. No row: it has ended already.
UPDATE sessions
SET
    status = 'cancelled',
    completed_at = :now,
    updated_at = :now
WHERE id = :id AND (status = 'pending' OR status = 'in_progress' OR status = 'paused')
RETURNING *;

-- name: list_sessions_by_status(status, created_at, after_id, limit)
-- A page of the sessions in one status, newest first.
SELECT *
FROM sessions
WHERE status = :status AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_sessions_by_project(project_path, created_at, after_id, limit)
-- A page of one project's sessions, newest first.
SELECT *
FROM sessions
WHERE project_path = :project_path AND (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_recent_sessions(created_at, after_id, limit)
-- A page of all sessions, newest first.
SELECT *
FROM sessions
WHERE (created_at, id) < (:created_at, :after_id)
ORDER BY created_at DESC, id DESC
LIMIT :limit;

-- name: list_open_sessions_by_worktree(worktree_id)
-- The sessions in a worktree that have not ended: one, or a handful, and so in no order.
SELECT *
FROM sessions
WHERE worktree_id = :worktree_id AND status IN ('pending', 'in_progress', 'paused');

-- name: count_open_sessions_by_auth_token(auth_token_id)$
-- How many sessions that a token opened have not ended.
SELECT count(*)
FROM sessions
WHERE auth_token_id = :auth_token_id AND status IN ('pending', 'in_progress', 'paused');

-- name: delete_session(id)<!
-- Delete a session with all that belongs to it. No row: there is none.
DELETE FROM sessions
WHERE id = :id
RETURNING *;

-- name: weigh_session(id, limit)^
-- What goes with a session, in rows and bytes, of each table as far as the limit: whether one statement
-- may delete all of it.
SELECT
    count(*) AS related_rows,
    coalesce(sum(w.bytes), 0) AS bytes
FROM
    (
        SELECT e.bytes
        FROM (
            SELECT length(e.message) + length(e.context) AS bytes
            FROM events AS e
            WHERE e.session_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS e
        UNION ALL
        SELECT a.bytes
        FROM (
            SELECT length(a.content_path) + length(a.metadata) AS bytes
            FROM artifacts AS a
            WHERE a.session_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS a
        UNION ALL
        SELECT c.bytes
        FROM (
            SELECT length(c.argv) + coalesce(length(c.error_message), 0) AS bytes
            FROM commands AS c
            WHERE c.session_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS c
        UNION ALL
        SELECT s.bytes
        FROM (
            SELECT
                coalesce(length(s.input), 0)
                + coalesce(length(s.output), 0)
                + coalesce(length(s.error_message), 0) AS bytes
            FROM steps AS s
            WHERE s.session_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS s
        UNION ALL
        SELECT d.bytes
        FROM (
            SELECT length(d.state) AS bytes
            FROM debugger_state AS d
            WHERE d.session_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS d
        UNION ALL
        SELECT l.bytes
        FROM (
            SELECT 0 AS bytes
            FROM project_locks AS l
            WHERE l.session_id = :id
            LIMIT :limit -- noqa: AM09
        ) AS l
    ) AS w;

-- name: cancel_session_to_delete(id, now)<!
-- The first step of a deletion in pieces: a session that is being deleted takes no more work.
-- No row: there is none.
UPDATE sessions
SET
    status = CASE WHEN status IN ('completed', 'failed', 'cancelled') THEN status ELSE 'cancelled' END,
    completed_at = coalesce(completed_at, :now),
    updated_at = :now
WHERE id = :id
RETURNING id;

-- name: mark_session_deletion(id, now)!
-- Show that the session is being deleted. One that was left half deleted is marked already.
INSERT INTO deletions (resource, resource_id, created_at)
VALUES ('sessions', :id, :now)
ON CONFLICT (resource, resource_id) DO NOTHING;

-- name: cut_events(id, limit, byte_limit)<!
-- Choose the events of the next piece: the oldest, for a chain is purged from its beginning. The statements
-- behind it act up to the cut, which the trigger that guards events compares too. No row: none is left.
UPDATE deletions
SET
    cut = (
        WITH RECURSIVE piece (position, place, bytes) AS (
            SELECT
                (
                    SELECT n.position
                    FROM events AS n
                    WHERE n.session_id = :id
                    ORDER BY n.position
                    LIMIT 1
                ) AS position,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.position
                    FROM events AS n
                    WHERE n.session_id = :id AND n.position > p.position
                    ORDER BY n.position
                    LIMIT 1
                ) AS position,
                p.place + 1 AS place,
                p.bytes + length(e.message) + length(e.context) AS bytes
            FROM piece AS p
            INNER JOIN events AS e ON e.session_id = :id AND p.position = e.position
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.position)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
WHERE
    resource = 'sessions'
    AND resource_id = :id
    AND EXISTS (
        SELECT 1
        FROM events AS e
        WHERE e.session_id = :id
    )
RETURNING cut;

-- name: purge_events_from_chain(id, now)!
-- Move the base of the chain to the cut, in the transaction in which the events up to it go, so that what is
-- left verifies. The limits matter only where somebody tampered: that must not make a deletion fail.
UPDATE audit_chains
SET
    unchained = max(0, unchained - p.without_hash),
    purged = min(length, purged + p.with_hash),
    base = coalesce(p.cut_base, base),
    purged_at = :now
FROM (
    SELECT
        count(*) - count(e.hash) AS without_hash,
        count(e.hash) AS with_hash,
        (
            SELECT b.position || ':' || b.hash
            FROM events AS b
            WHERE b.session_id = :id AND b.position <= d.cut AND b.hash IS NOT NULL
            ORDER BY b.position DESC
            LIMIT 1
        ) AS cut_base
    FROM deletions AS d
    INNER JOIN events AS e ON e.session_id = :id AND d.cut >= e.position
    WHERE d.resource = 'sessions' AND d.resource_id = :id
) AS p
WHERE resource = 'events' AND resource_id = :id;

-- name: delete_events_up_to_cut(id)!
-- The end of the piece that cut_events began.
DELETE FROM events
WHERE
    session_id = :id
    AND position <= (
        SELECT d.cut
        FROM deletions AS d
        WHERE d.resource = 'sessions' AND d.resource_id = :id
    );

-- name: delete_artifacts_of_session(id, limit, byte_limit)<!
-- A piece of a deletion: artifacts of a session, before the commands that they name. No row: none is left.
DELETE FROM artifacts
WHERE
    session_id = :id
    AND id <= (
        WITH RECURSIVE piece (id, place, bytes) AS (
            SELECT
                (
                    SELECT n.id
                    FROM artifacts AS n
                    WHERE n.session_id = :id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.id
                    FROM artifacts AS n
                    WHERE n.session_id = :id AND n.id > p.id
                    ORDER BY n.id
                    LIMIT 1
                ) AS id,
                p.place + 1 AS place,
                p.bytes + length(a.content_path) + length(a.metadata) AS bytes
            FROM piece AS p
            INNER JOIN artifacts AS a ON a.session_id = :id AND p.id = a.id
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.id)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_commands_of_session(id, limit, byte_limit)<!
-- A piece of a deletion: commands of a session. No row: none is left.
DELETE FROM commands
WHERE
    session_id = :id
    AND sequence <= (
        WITH RECURSIVE piece (sequence, place, bytes) AS (
            SELECT
                (
                    SELECT n.sequence
                    FROM commands AS n
                    WHERE n.session_id = :id
                    ORDER BY n.sequence
                    LIMIT 1
                ) AS sequence,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.sequence
                    FROM commands AS n
                    WHERE n.session_id = :id AND n.sequence > p.sequence
                    ORDER BY n.sequence
                    LIMIT 1
                ) AS sequence,
                p.place + 1 AS place,
                p.bytes + length(c.argv) + coalesce(length(c.error_message), 0) AS bytes
            FROM piece AS p
            INNER JOIN commands AS c ON c.session_id = :id AND p.sequence = c.sequence
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.sequence)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_steps_of_session(id, limit, byte_limit)<!
-- A piece of a deletion: steps of a session. No row: none is left.
DELETE FROM steps
WHERE
    session_id = :id
    AND sequence <= (
        WITH RECURSIVE piece (sequence, place, bytes) AS (
            SELECT
                (
                    SELECT n.sequence
                    FROM steps AS n
                    WHERE n.session_id = :id
                    ORDER BY n.sequence
                    LIMIT 1
                ) AS sequence,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.sequence
                    FROM steps AS n
                    WHERE n.session_id = :id AND n.sequence > p.sequence
                    ORDER BY n.sequence
                    LIMIT 1
                ) AS sequence,
                p.place + 1 AS place,
                p.bytes
                + coalesce(length(s.input), 0)
                + coalesce(length(s.output), 0)
                + coalesce(length(s.error_message), 0) AS bytes
            FROM piece AS p
            INNER JOIN steps AS s ON s.session_id = :id AND p.sequence = s.sequence
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.sequence)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_debugger_state_of_session(id, limit, byte_limit)<!
-- A piece of a deletion: checkpoints of a session's debugger. No row: none is left.
DELETE FROM debugger_state
WHERE
    session_id = :id
    AND sequence <= (
        WITH RECURSIVE piece (sequence, place, bytes) AS (
            SELECT
                (
                    SELECT n.sequence
                    FROM debugger_state AS n
                    WHERE n.session_id = :id
                    ORDER BY n.sequence
                    LIMIT 1
                ) AS sequence,
                1 AS place,
                0 AS bytes
            UNION ALL
            SELECT
                (
                    SELECT n.sequence
                    FROM debugger_state AS n
                    WHERE n.session_id = :id AND n.sequence > p.sequence
                    ORDER BY n.sequence
                    LIMIT 1
                ) AS sequence,
                p.place + 1 AS place,
                p.bytes + length(d.state) AS bytes
            FROM piece AS p
            INNER JOIN debugger_state AS d ON d.session_id = :id AND p.sequence = d.sequence
            WHERE p.place < :limit AND p.bytes < :byte_limit
        )

        SELECT max(piece.sequence)
        FROM piece
        WHERE piece.bytes < :byte_limit
    )
RETURNING id;

-- name: delete_locks_of_session(id, limit)<!
-- A piece of a deletion: locks of a session. No row: none is left.
DELETE FROM project_locks
WHERE
    id IN (
        SELECT l.id
        FROM project_locks AS l
        WHERE l.session_id = :id
        LIMIT :limit -- noqa: AM09
    )
RETURNING id;
