-- 0036-bind-secrets-to-incarnations, undone: secrets that were set or re-encrypted since do not open any more.

DROP INDEX IF EXISTS ix_configurations_secret_key_id;

ALTER TABLE configurations DROP COLUMN incarnation;
