-- 0010-create-artifacts: which files a session produced.
--
-- Why:      logs, reports, diffs and dumps must be found by session and by type.
-- Locks:    none (new table).
-- Rollback: drops the table; what is known of the files is lost, the files are not.
--
-- depends: 0009-create-commands

CREATE TABLE IF NOT EXISTS artifacts (
    -- Files that a session produced: what they are and where they lie, not what is in them.
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- The command that produced it, where one did.
    command_id TEXT REFERENCES commands (id) ON DELETE SET NULL,
    artifact_type TEXT NOT NULL,
    name TEXT NOT NULL,
    -- Where the file lies.
    content_path TEXT NOT NULL,
    size_bytes INTEGER,
    -- SHA-256 of the file, in lower-case hex.
    sha256 TEXT,
    -- What there is to know beyond the columns, an object.
    metadata TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT artifacts_id_check CHECK (length(id) = 36),
    CONSTRAINT artifacts_artifact_type_check CHECK (
        artifact_type = 'log'
        OR artifact_type = 'coverage'
        OR artifact_type = 'junit_xml'
        OR artifact_type = 'crash_dump'
        OR artifact_type = 'test_file'
        OR artifact_type = 'report'
        OR artifact_type = 'diff'
        OR artifact_type = 'backup'
    ),
    CONSTRAINT artifacts_name_check CHECK (length(name) > 0 AND length(name) <= 255),
    CONSTRAINT artifacts_size_bytes_check CHECK (size_bytes >= 0),
    CONSTRAINT artifacts_sha256_check CHECK (length(sha256) = 64),
    CONSTRAINT artifacts_metadata_check CHECK (json_valid(metadata) AND json_type(metadata) = 'object'),
    CONSTRAINT artifacts_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

CREATE INDEX IF NOT EXISTS ix_artifacts_session_id
ON artifacts (session_id, id);

CREATE INDEX IF NOT EXISTS ix_artifacts_type
ON artifacts (artifact_type, id);

CREATE INDEX IF NOT EXISTS ix_artifacts_command_id
ON artifacts (command_id)
WHERE command_id IS NOT NULL;
