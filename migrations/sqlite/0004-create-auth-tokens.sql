-- 0004-create-auth-tokens: who may use the service, for what, and until when.
--
-- Why:      every request is checked against a token; a session remembers which one opened it.
-- Locks:    none (new table).
-- Rollback: drops the table; every token stops working, and all must be issued again.
--
-- depends: 0003-create-projects

CREATE TABLE IF NOT EXISTS auth_tokens (
    -- Bearer tokens: of each only its hash is kept, so that a copy of the database opens nothing.
    id TEXT NOT NULL PRIMARY KEY,
    -- Whose token it is.
    user_name TEXT NOT NULL,
    -- What the token is for, in its user's words.
    name TEXT NOT NULL,
    -- The first characters of the token, by which its user recognises it.
    token_prefix TEXT NOT NULL,
    -- SHA-256 of the token, in lower-case hex.
    token_hash TEXT NOT NULL UNIQUE,
    -- What the token opens, an array; an empty one opens nothing.
    scopes TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- NULL: it does not expire.
    expires_at TEXT,
    -- Written at most once a minute.
    last_used_at TEXT,
    revoked_at TEXT,
    -- The token that a rotation put in its place; until expires_at both work.
    replaced_by TEXT REFERENCES auth_tokens (id) ON DELETE SET NULL,
    CONSTRAINT auth_tokens_id_check CHECK (length(id) = 36),
    CONSTRAINT auth_tokens_user_name_check CHECK (length(user_name) > 0),
    CONSTRAINT auth_tokens_token_hash_check CHECK (
        length(token_hash) = 64 AND token_hash NOT GLOB '*[^0-9a-f]*'
    ),
    CONSTRAINT auth_tokens_scopes_check CHECK (json_valid(scopes) AND json_type(scopes) = 'array'),
    CONSTRAINT auth_tokens_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT auth_tokens_expires_at_check CHECK (expires_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT auth_tokens_last_used_at_check CHECK (last_used_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT auth_tokens_revoked_at_check CHECK (revoked_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_auth_tokens_user_name
ON auth_tokens (user_name, id);

CREATE INDEX IF NOT EXISTS ix_auth_tokens_replaced_by
ON auth_tokens (replaced_by)
WHERE replaced_by IS NOT NULL;
