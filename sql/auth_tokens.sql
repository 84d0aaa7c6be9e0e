-- auth_tokens: who may use the service, for what, and until when.
-- Of a token only its SHA-256 and its first characters are stored. It is live while it is neither
-- revoked nor expired; one that was replaced stays live until its grace period has passed.

-- name: create_auth_token(id, user_name, name, token_prefix, token_hash, scopes, created_at, expires_at)<!
-- Issue a token.
INSERT INTO auth_tokens (
    id,
    user_name,
    name,
    token_prefix,
    token_hash,
    scopes,
    created_at,
    expires_at
)
VALUES (
    :id,
    :user_name,
    :name,
    :token_prefix,
    :token_hash,
    :scopes,
    :created_at,
    :expires_at
)
RETURNING *;

-- name: bootstrap_token(id, user_name, name, token_prefix, token_hash, scopes, created_at, expires_at)<!
-- Issue a token for everything, unless a live one exists: in one statement, so that of two
-- processes that start at once only one succeeds. A scope holds no quotes, so that the pattern
-- finds exactly the scope `*`. No row: there is one.
-- Needs: one writer, or two could each find no other token.
INSERT INTO auth_tokens (
    id,
    user_name,
    name,
    token_prefix,
    token_hash,
    scopes,
    created_at,
    expires_at
)
SELECT
    :id,
    :user_name,
    :name,
    :token_prefix,
    :token_hash,
    :scopes,
    :created_at,
    :expires_at
WHERE
    NOT EXISTS (
        SELECT 1
        FROM auth_tokens AS admin
        WHERE
            cast(admin.scopes AS text) LIKE '%"*"%'
            AND admin.revoked_at IS NULL
            AND (admin.expires_at IS NULL OR admin.expires_at > :created_at)
    )
RETURNING *;

-- name: get_auth_token(id)^
-- No row: there is no such token.
SELECT *
FROM auth_tokens
WHERE id = :id;

-- name: find_auth_token_by_hash(token_hash)^
-- Every request asks this. Whether the token is live is for the caller to say.
-- No row: it was never issued.
SELECT *
FROM auth_tokens
WHERE token_hash = :token_hash;

-- name: touch_auth_token(id, last_used_at, unused_since)<!
-- Note that a token is in use, unless that was noted a moment ago: verifying is a read, and must
-- not become a write on every request. No row: it was noted.
UPDATE auth_tokens
SET last_used_at = :last_used_at
WHERE id = :id AND (last_used_at IS NULL OR last_used_at <= :unused_since)
RETURNING *;

-- name: replace_auth_token(id, replaced_by, expires_at, now)<!
-- Let a live token expire in favour of its replacement, at :expires_at or when it would anyway.
-- No row: it is revoked, expired or replaced already.
UPDATE auth_tokens
SET
    expires_at = CASE WHEN expires_at < :expires_at THEN expires_at ELSE :expires_at END,
    replaced_by = :replaced_by
WHERE
    id = :id
    AND revoked_at IS NULL
    AND replaced_by IS NULL
    AND (expires_at IS NULL OR expires_at > :now)
RETURNING *;

-- name: revoke_auth_token(id, revoked_at)<!
-- End a token for good; the first time it was revoked stands. No row: there is no such token.
UPDATE auth_tokens
SET revoked_at = coalesce(revoked_at, :revoked_at)
WHERE id = :id
RETURNING *;

-- name: list_auth_tokens(after_id, limit)
-- A page in the order of issue.
SELECT *
FROM auth_tokens
WHERE id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_auth_tokens_by_user(user_name, after_id, limit)
-- A page of one user's tokens in the order of issue.
SELECT *
FROM auth_tokens
WHERE user_name = :user_name AND id > :after_id
ORDER BY id
LIMIT :limit;
