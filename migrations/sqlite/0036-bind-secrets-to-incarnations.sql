-- 0036-bind-secrets-to-incarnations: a secret that was deleted and set again is another one.
--
-- Why:      versions begin at 1 again after a delete, so that an old ciphertext opened in the new row; and the
--           keys that are in use are looked up before another one seals.
-- Locks:    none (new column, new index over the secrets).
-- Rollback: drops the column. Secrets that were set or re-encrypted since do not open without it: reveal them
--           first, and set them again afterwards. Releases before this one cannot open them either.
--
-- depends: 0035-create-audit-entries

-- Which life of its key a secret belongs to: authenticated with the ciphertext. NULL for a plain value, and for
-- a secret that was sealed before there was one, until the next rotation of keys.
ALTER TABLE configurations ADD COLUMN incarnation TEXT
CONSTRAINT configurations_incarnation_check CHECK (length(incarnation) = 36);

-- The keys that secrets are encrypted under.
CREATE INDEX IF NOT EXISTS ix_configurations_secret_key_id
ON configurations (secret_key_id)
WHERE secret_key_id IS NOT NULL;
