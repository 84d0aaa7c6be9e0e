-- What each applied migration's files held when it was applied, beside yoyo's own tables, whose
-- hash is of the file's name only. Not a migration: the migration layer makes it before the first.
CREATE TABLE IF NOT EXISTS _metastore_checksum (
    migration_id TEXT NOT NULL PRIMARY KEY,
    -- SHA-256 of NNNN-name.sql and of NNNN-name.rollback.sql, in lower-case hex
    checksum TEXT NOT NULL,
    rollback_checksum TEXT NOT NULL,
    recorded_at TEXT NOT NULL
) STRICT;
