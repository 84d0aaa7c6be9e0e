-- tasks: the statements that look for one to claim.
-- An expired claim comes first: it has waited longest, and its holder is gone. Waiters in the queue with a
-- smaller position come before the caller: there must be one claimable task more than there are of them.
-- CROSS JOIN, for the planner is not to walk through all pending tasks in search of those of a type.

-- name: claim_task(line_id, position, lease_owner, lease_token, lease_expires_at, now, latest_credible_expiry, latest_credible_ticket)<!
-- Differs: with its one writer, SQLite has no FOR UPDATE SKIP LOCKED, and needs none.
-- Claim the oldest pending task, or one whose claim expired. No row: there is none for this caller.
WITH line AS (
    SELECT count(*) AS ahead
    FROM lease_waiters
    WHERE
        resource = 'tasks'
        AND resource_id = :line_id
        AND position < :position
        AND expires_at > :now
        AND expires_at <= :latest_credible_ticket
)

UPDATE tasks
SET
    status = 'running',
    started_at = :now,
    lease_owner = :lease_owner,
    lease_token = :lease_token,
    leased_at = :now,
    lease_expires_at = :lease_expires_at,
    version = version + 1,
    updated_at = :now
WHERE
    id = coalesce(
        (
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at <= :now
            ORDER BY t.lease_expires_at
            LIMIT 1
        ),
        (
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at > :latest_credible_expiry
            ORDER BY t.lease_expires_at
            LIMIT 1
        ),
        (
            SELECT t.id
            FROM tasks AS t
            WHERE t.status = 'pending'
            ORDER BY t.created_at, t.id
            LIMIT 1
        )
    )
    AND EXISTS (
        SELECT 1
        FROM (
            SELECT t.id
            FROM tasks AS t
            WHERE t.status = 'pending'
            UNION ALL
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at <= :now
            UNION ALL
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at > :latest_credible_expiry
        ) AS claimable
        LIMIT -- noqa: AM09
            1
            OFFSET (SELECT l.ahead FROM line AS l)
    )
RETURNING *;

-- name: claim_task_of_types(task_types, line_id, position, lease_owner, lease_token, lease_expires_at, now, latest_credible_expiry, latest_credible_ticket)<!
-- Differs: json_each, and as claim_task.
-- The same among the tasks of some types: the oldest of each type is compared, never all of them.
-- No row: there is none for this caller.
WITH line AS (
    SELECT count(*) AS ahead
    FROM lease_waiters
    WHERE
        resource = 'tasks'
        AND resource_id = :line_id
        AND position < :position
        AND expires_at > :now
        AND expires_at <= :latest_credible_ticket
)

UPDATE tasks
SET
    status = 'running',
    started_at = :now,
    lease_owner = :lease_owner,
    lease_token = :lease_token,
    leased_at = :now,
    lease_expires_at = :lease_expires_at,
    version = version + 1,
    updated_at = :now
WHERE
    id = coalesce(
        (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            INNER JOIN tasks AS t
                ON
                    t.id = (
                        SELECT e.id
                        FROM tasks AS e
                        WHERE e.task_type = wanted.value AND e.lease_expires_at <= :now
                        ORDER BY e.lease_expires_at
                        LIMIT 1
                    )
            ORDER BY t.lease_expires_at
            LIMIT 1
        ),
        (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            INNER JOIN tasks AS t
                ON
                    t.id = (
                        SELECT e.id
                        FROM tasks AS e
                        WHERE e.task_type = wanted.value AND e.lease_expires_at > :latest_credible_expiry
                        ORDER BY e.lease_expires_at
                        LIMIT 1
                    )
            ORDER BY t.lease_expires_at
            LIMIT 1
        ),
        (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            INNER JOIN tasks AS t
                ON
                    t.id = (
                        SELECT p.id
                        FROM tasks AS p
                        WHERE p.status = 'pending' AND p.task_type = wanted.value
                        ORDER BY p.created_at, p.id
                        LIMIT 1
                    )
            ORDER BY t.created_at, t.id
            LIMIT 1
        )
    )
    AND EXISTS (
        SELECT 1
        FROM (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.status = 'pending' AND t.task_type = wanted.value
            UNION ALL
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.task_type = wanted.value AND t.lease_expires_at <= :now
            UNION ALL
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.task_type = wanted.value AND t.lease_expires_at > :latest_credible_expiry
        ) AS claimable
        LIMIT -- noqa: AM09
            1
            OFFSET (SELECT l.ahead FROM line AS l)
    )
RETURNING *;

-- name: claim_task_in_turn(line_id, position, lease_owner, lease_token, lease_expires_at, now, latest_credible_expiry, latest_credible_ticket)<!
-- Differs: as claim_task.
-- Claim the oldest pending task of the workspace whose last claim is longest ago, or a task whose claim
-- expired. No row: there is none for this caller.
WITH line AS (
    SELECT count(*) AS ahead
    FROM lease_waiters
    WHERE
        resource = 'tasks'
        AND resource_id = :line_id
        AND position < :position
        AND expires_at > :now
        AND expires_at <= :latest_credible_ticket
)

UPDATE tasks
SET
    status = 'running',
    started_at = :now,
    lease_owner = :lease_owner,
    lease_token = :lease_token,
    leased_at = :now,
    lease_expires_at = :lease_expires_at,
    version = version + 1,
    updated_at = :now
WHERE
    id = coalesce(
        (
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at <= :now
            ORDER BY t.lease_expires_at
            LIMIT 1
        ),
        (
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at > :latest_credible_expiry
            ORDER BY t.lease_expires_at
            LIMIT 1
        ),
        (
            SELECT t.id
            FROM tasks AS t
            WHERE
                t.status = 'pending'
                AND t.workspace_path IS (
                    SELECT nullif(n.workspace_path, '')
                    FROM task_turns AS n
                    WHERE n.pending > 0
                    ORDER BY n.turn, n.workspace_path
                    LIMIT 1
                )
            ORDER BY t.created_at, t.id
            LIMIT 1
        )
    )
    AND EXISTS (
        SELECT 1
        FROM (
            SELECT t.id
            FROM tasks AS t
            WHERE t.status = 'pending'
            UNION ALL
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at <= :now
            UNION ALL
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at > :latest_credible_expiry
        ) AS claimable
        LIMIT -- noqa: AM09
            1
            OFFSET (SELECT l.ahead FROM line AS l)
    )
RETURNING *;

-- name: claim_task_of_types_in_turn(task_types, line_id, position, lease_owner, lease_token, lease_expires_at, now, latest_credible_expiry, latest_credible_ticket)<!
-- Differs: as claim_task_of_types.
-- The same among the tasks of some types. No row: there is none for this caller.
WITH line AS (
    SELECT count(*) AS ahead
    FROM lease_waiters
    WHERE
        resource = 'tasks'
        AND resource_id = :line_id
        AND position < :position
        AND expires_at > :now
        AND expires_at <= :latest_credible_ticket
)

UPDATE tasks
SET
    status = 'running',
    started_at = :now,
    lease_owner = :lease_owner,
    lease_token = :lease_token,
    leased_at = :now,
    lease_expires_at = :lease_expires_at,
    version = version + 1,
    updated_at = :now
WHERE
    id = coalesce(
        (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            INNER JOIN tasks AS t
                ON
                    t.id = (
                        SELECT e.id
                        FROM tasks AS e
                        WHERE e.task_type = wanted.value AND e.lease_expires_at <= :now
                        ORDER BY e.lease_expires_at
                        LIMIT 1
                    )
            ORDER BY t.lease_expires_at
            LIMIT 1
        ),
        (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            INNER JOIN tasks AS t
                ON
                    t.id = (
                        SELECT e.id
                        FROM tasks AS e
                        WHERE e.task_type = wanted.value AND e.lease_expires_at > :latest_credible_expiry
                        ORDER BY e.lease_expires_at
                        LIMIT 1
                    )
            ORDER BY t.lease_expires_at
            LIMIT 1
        ),
        (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            INNER JOIN task_turns AS w
                ON
                    wanted.value = w.task_type
                    AND w.workspace_path = (
                        SELECT n.workspace_path
                        FROM task_turns AS n
                        WHERE n.task_type = wanted.value AND n.pending > 0
                        ORDER BY n.turn, n.workspace_path
                        LIMIT 1
                    )
            INNER JOIN tasks AS t
                ON
                    t.id = (
                        SELECT p.id
                        FROM tasks AS p
                        WHERE
                            p.status = 'pending'
                            AND p.workspace_path IS nullif(w.workspace_path, '')
                            AND p.task_type = wanted.value
                        ORDER BY p.created_at, p.id
                        LIMIT 1
                    )
            ORDER BY w.turn, t.created_at, t.id
            LIMIT 1
        )
    )
    AND EXISTS (
        SELECT 1
        FROM (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.status = 'pending' AND t.task_type = wanted.value
            UNION ALL
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.task_type = wanted.value AND t.lease_expires_at <= :now
            UNION ALL
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.task_type = wanted.value AND t.lease_expires_at > :latest_credible_expiry
        ) AS claimable
        LIMIT -- noqa: AM09
            1
            OFFSET (SELECT l.ahead FROM line AS l)
    )
RETURNING *;

-- name: task_is_available(line_id, position, now, latest_credible_expiry, latest_credible_ticket)$
-- Differs: as claim_task, whose condition it repeats for those who wait, without a write.
-- No row: there is no task for a waiter at this position.
WITH line AS (
    SELECT count(*) AS ahead
    FROM lease_waiters
    WHERE
        resource = 'tasks'
        AND resource_id = :line_id
        AND position < :position
        AND expires_at > :now
        AND expires_at <= :latest_credible_ticket
)

SELECT 1
WHERE
    EXISTS (
        SELECT 1
        FROM (
            SELECT t.id
            FROM tasks AS t
            WHERE t.status = 'pending'
            UNION ALL
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at <= :now
            UNION ALL
            SELECT t.id
            FROM tasks AS t
            WHERE t.lease_expires_at > :latest_credible_expiry
        ) AS claimable
        LIMIT -- noqa: AM09
            1
            OFFSET (SELECT l.ahead FROM line AS l)
    );

-- name: task_of_types_is_available(task_types, line_id, position, now, latest_credible_expiry, latest_credible_ticket)$
-- Differs: as claim_task_of_types, whose condition it repeats for those who wait, without a write.
-- No row: there is no task for a waiter at this position.
WITH line AS (
    SELECT count(*) AS ahead
    FROM lease_waiters
    WHERE
        resource = 'tasks'
        AND resource_id = :line_id
        AND position < :position
        AND expires_at > :now
        AND expires_at <= :latest_credible_ticket
)

SELECT 1
WHERE
    EXISTS (
        SELECT 1
        FROM (
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.status = 'pending' AND t.task_type = wanted.value
            UNION ALL
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.task_type = wanted.value AND t.lease_expires_at <= :now
            UNION ALL
            SELECT t.id
            FROM json_each(:task_types) AS wanted
            CROSS JOIN tasks AS t
            WHERE t.task_type = wanted.value AND t.lease_expires_at > :latest_credible_expiry
        ) AS claimable
        LIMIT -- noqa: AM09
            1
            OFFSET (SELECT l.ahead FROM line AS l)
    );
