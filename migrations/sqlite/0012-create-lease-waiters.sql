-- 0012-create-lease-waiters: who waits for a lease or a lock, first come first served.
--
-- Why:      without a line, whoever asks most often wins and the others starve.
-- Locks:    none (new table).
-- Rollback: drops the table; those who wait lose their place.
--
-- depends: 0011-create-debugger-state

CREATE TABLE IF NOT EXISTS lease_waiters (
    -- Tickets of those who wait, across processes. A ticket counts until it expires, and whoever waits
    -- keeps it alive, so that the dead block nobody.

    -- The place in line: the smallest is served first. AUTOINCREMENT, for nobody may come in between.
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    -- The table of what is waited for.
    resource TEXT NOT NULL,
    -- The repository whose worktrees, or the project whose lock, is waited for.
    resource_id TEXT NOT NULL,
    -- Who waits, in the waiter's own words.
    owner TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    expires_at TEXT NOT NULL,
    CONSTRAINT lease_waiters_id_check CHECK (length(id) = 36),
    CONSTRAINT lease_waiters_resource_check CHECK (resource IN ('worktrees', 'project_locks', 'tasks')),
    CONSTRAINT lease_waiters_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT lease_waiters_expires_at_check CHECK (expires_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_lease_waiters_resource
ON lease_waiters (resource, resource_id, position);
