-- 0030-create-configurations: settings that change while the service runs, secrets among them.
--
-- Why:      programs read typed settings from where they keep everything else, and a secret must not
--           lie in a copy of the database for all to read.
-- Locks:    none (new table).
-- Rollback: drops the table; every setting is lost. Dump them first; secrets are not in a dump.
--
-- depends: 0029-create-client-sessions

CREATE TABLE IF NOT EXISTS configurations (
    -- Settings by key, each of one type.
    key TEXT NOT NULL PRIMARY KEY,
    -- The value as text; of a secret base64 of nonce, ciphertext and tag (AES-256-GCM, bound to key, version
    -- and value_type).
    value TEXT NOT NULL,
    value_type TEXT NOT NULL,
    description TEXT,
    is_secret INTEGER NOT NULL DEFAULT 0,
    -- Grows with every change of the value: what compare-and-set compares.
    version INTEGER NOT NULL DEFAULT 1,
    -- Which key a secret is encrypted under, by its fingerprint. The key itself is never here.
    secret_key_id TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT configurations_key_check CHECK (length(key) BETWEEN 1 AND 255),
    CONSTRAINT configurations_value_type_check CHECK (
        value_type IN ('string', 'integer', 'float', 'boolean', 'json')
    ),
    CONSTRAINT configurations_is_secret_check CHECK (is_secret = 0 OR is_secret = 1),
    -- A plain value is text of its type; what a secret is only its key can tell.
    CONSTRAINT configurations_value_check CHECK (
        is_secret = 1
        OR CASE value_type
            WHEN 'integer' THEN cast(cast(value AS INTEGER) AS TEXT) = value
            WHEN 'float' THEN value GLOB '*[0-9]*' AND value NOT GLOB '*[^0-9eE.+-]*'
            WHEN 'boolean' THEN value = 'true' OR value = 'false'
            -- Around JSON there may be blanks.
            WHEN 'json' THEN json_valid(trim(value))
            ELSE 1
        END
    ),
    -- A secret has a key and looks like ciphertext, so that no UPDATE by hand makes it plaintext.
    CONSTRAINT configurations_secret_key_id_check CHECK (
        (is_secret = 0 AND secret_key_id IS NULL)
        OR (
            is_secret = 1
            AND secret_key_id IS NOT NULL
            AND length(secret_key_id) = 16
            AND length(value) >= 40
            AND value NOT GLOB '*[^0-9A-Za-z+/=]*'
        )
    ),
    CONSTRAINT configurations_version_check CHECK (version >= 1),
    CONSTRAINT configurations_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    CONSTRAINT configurations_updated_at_check CHECK (updated_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS idx_configurations_type
ON configurations (value_type, key);

-- The secrets in the order in which a rotation of keys takes them.
CREATE INDEX IF NOT EXISTS idx_configurations_secret
ON configurations (is_secret, key);

CREATE INDEX IF NOT EXISTS idx_configurations_updated
ON configurations (updated_at);

-- A statement that gives a row the time that it has already is not one by hand: its time stays.
-- SQLite runs the trigger that was made last first, so this one puts right what the next one did.
CREATE TRIGGER IF NOT EXISTS configurations_updated_at_given
AFTER UPDATE OF updated_at ON configurations FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE configurations
    SET updated_at = new.updated_at
    WHERE key = new.key AND updated_at <> new.updated_at;
END;

-- Statements stamp updated_at themselves; this is for an UPDATE written by hand.
CREATE TRIGGER IF NOT EXISTS configurations_updated_at
AFTER UPDATE ON configurations FOR EACH ROW
WHEN new.updated_at = old.updated_at
BEGIN
    UPDATE configurations
    SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE key = new.key AND updated_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now');
END;

-- A plain value that was changed by hand is another version too: who compares must see it.
CREATE TRIGGER IF NOT EXISTS configurations_version
AFTER UPDATE OF value ON configurations FOR EACH ROW
WHEN new.version = old.version AND new.value <> old.value AND new.is_secret = 0
BEGIN
    UPDATE configurations
    SET version = new.version + 1
    WHERE key = new.key;
END;
