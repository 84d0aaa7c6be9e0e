-- configurations: typed settings by key, secrets among them.
-- A write names the version it was made for: a secret's ciphertext is bound to it, and of two writers
-- only one can be the next.

-- name: create_configuration(key, value, value_type, description, is_secret, secret_key_id, created_at)<!
-- Set a key that has no value yet. No row: it has one.
INSERT INTO configurations (
    key,
    value,
    value_type,
    description,
    is_secret,
    version,
    secret_key_id,
    created_at,
    updated_at
)
VALUES (
    :key,
    :value,
    :value_type,
    :description,
    :is_secret,
    1,
    :secret_key_id,
    :created_at,
    :created_at
)
ON CONFLICT (key) DO NOTHING
RETURNING key, value, value_type, description, is_secret, version, secret_key_id, created_at, updated_at;

-- name: update_configuration(key, value, value_type, description, is_secret, version, secret_key_id, updated_at)<!
-- Make :version of a value out of the one before it. A description stays unless there is another.
-- No row: the value moved since it was read, or is gone.
UPDATE configurations
SET
    value = :value,
    value_type = :value_type,
    description = coalesce(:description, description),
    is_secret = :is_secret,
    version = :version,
    secret_key_id = :secret_key_id,
    updated_at = :updated_at
WHERE key = :key AND version = :version - 1
RETURNING key, value, value_type, description, is_secret, version, secret_key_id, created_at, updated_at;

-- name: reencrypt_configuration(key, value, version, secret_key_id, updated_at)!
-- Put a secret under another key: the version it is bound to stays. Nothing happens to one that moved
-- meanwhile: it was encrypted under the newest key.
UPDATE configurations
SET
    value = :value,
    secret_key_id = :secret_key_id,
    updated_at = :updated_at
WHERE key = :key AND version = :version AND is_secret = TRUE AND secret_key_id <> :secret_key_id;

-- name: get_configuration(key)^
-- No row: the key has no value.
SELECT
    key,
    value,
    value_type,
    description,
    is_secret,
    version,
    secret_key_id,
    created_at,
    updated_at
FROM configurations
WHERE key = :key;

-- name: list_configurations(after_key, limit)
-- A page in the order of the keys.
SELECT
    key,
    value,
    value_type,
    description,
    is_secret,
    version,
    secret_key_id,
    created_at,
    updated_at
FROM configurations
WHERE key > :after_key
ORDER BY key
LIMIT :limit;

-- name: list_secret_configurations(after_key, limit)
-- A page of the secrets, for a rotation of keys.
SELECT
    key,
    value,
    value_type,
    description,
    is_secret,
    version,
    secret_key_id,
    created_at,
    updated_at
FROM configurations
WHERE is_secret = TRUE AND key > :after_key
ORDER BY key
LIMIT :limit;

-- name: delete_configuration(key)<!
-- No row: the key had no value.
DELETE FROM configurations
WHERE key = :key
RETURNING key, value, value_type, description, is_secret, version, secret_key_id, created_at, updated_at;
