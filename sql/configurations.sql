-- configurations: typed settings by key, secrets among them.
-- A write names the version it was made for: a secret's ciphertext is bound to it, and of two writers
-- only one can be the next. Who writes a secret names a key of theirs that secrets are encrypted under
-- already, unless there are none: under a stranger's key nobody else could open it.

-- name: create_configuration(key, value, value_type, description, is_secret, secret_key_id, incarnation, known_key_id, created_at)<!
-- Set a key that has no value yet. No row: it has one, or the secrets are under other keys.
-- Needs: one writer, or two could each store the first secret, under different keys.
INSERT INTO configurations (
    key,
    value,
    value_type,
    description,
    is_secret,
    version,
    secret_key_id,
    created_at,
    updated_at,
    incarnation
)
SELECT
    :key,
    :value,
    :value_type,
    :description,
    :is_secret,
    1,
    :secret_key_id,
    :created_at,
    :created_at,
    :incarnation
WHERE
    (
        :known_key_id IS NULL
        OR EXISTS (
            SELECT 1
            FROM configurations AS known
            WHERE known.secret_key_id = :known_key_id
        )
        OR NOT EXISTS (
            SELECT 1
            FROM configurations AS secret
            WHERE secret.secret_key_id IS NOT NULL
        )
    )
ON CONFLICT (key) DO NOTHING
RETURNING *;

-- name: update_configuration(key, value, value_type, description, is_secret, version, secret_key_id, incarnation, known_key_id, updated_at)<!
-- Make :version of a value out of the one before it. A description stays unless there is another.
-- No row: the value moved since it was read, or is gone, or the secrets are under other keys.
-- Needs: one writer, or two could each store the first secret, under different keys.
UPDATE configurations
SET
    value = :value,
    value_type = :value_type,
    description = coalesce(:description, description),
    is_secret = :is_secret,
    version = :version,
    secret_key_id = :secret_key_id,
    incarnation = :incarnation,
    updated_at = :updated_at
WHERE
    key = :key
    AND version = :version - 1
    AND (
        :known_key_id IS NULL
        OR EXISTS (
            SELECT 1
            FROM configurations AS known
            WHERE known.secret_key_id = :known_key_id
        )
        OR NOT EXISTS (
            SELECT 1
            FROM configurations AS secret
            WHERE secret.secret_key_id IS NOT NULL
        )
    )
RETURNING *;

-- name: reencrypt_configuration(key, value, version, secret_key_id, incarnation, updated_at)!
-- Put a secret under another key: the version it is bound to stays. Nothing happens to one that moved
-- meanwhile: it was encrypted under the newest key. Nor to one that was deleted and set again, which has
-- another incarnation.
UPDATE configurations
SET
    value = :value,
    secret_key_id = :secret_key_id,
    incarnation = :incarnation,
    updated_at = :updated_at
WHERE
    key = :key
    AND version = :version
    AND is_secret = TRUE
    AND (secret_key_id <> :secret_key_id OR incarnation IS NULL)
    AND coalesce(incarnation, :incarnation) = :incarnation;

-- name: get_configuration(key)^
-- No row: the key has no value.
SELECT *
FROM configurations
WHERE key = :key;

-- name: list_configurations(after_key, limit)
-- A page in the order of the keys.
SELECT *
FROM configurations
WHERE key > :after_key
ORDER BY key
LIMIT :limit;

-- name: list_secret_configurations(after_key, limit)
-- A page of the secrets, for a rotation of keys.
SELECT *
FROM configurations
WHERE is_secret = TRUE AND key > :after_key
ORDER BY key
LIMIT :limit;

-- name: list_secret_key_ids()
-- The keys that secrets are encrypted under, when a secret was refused for its key.
SELECT DISTINCT secret_key_id
FROM configurations
WHERE secret_key_id IS NOT NULL
ORDER BY secret_key_id;

-- name: delete_configuration(key)<!
-- No row: the key had no value.
DELETE FROM configurations
WHERE key = :key
RETURNING *;
