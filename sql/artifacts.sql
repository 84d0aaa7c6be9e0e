-- artifacts: the files that a session produced.

-- name: create_artifact(id, session_id, command_id, artifact_type, name, content_path, size_bytes, sha256, metadata, created_at)<!
-- Note a file, and what it was when it was noted.
INSERT INTO artifacts (
    id,
    session_id,
    command_id,
    artifact_type,
    name,
    content_path,
    size_bytes,
    sha256,
    metadata,
    created_at
)
VALUES (
    :id,
    :session_id,
    :command_id,
    :artifact_type,
    :name,
    :content_path,
    :size_bytes,
    :sha256,
    :metadata,
    :created_at
)
RETURNING *;

-- name: get_artifact(id)^
-- No row: there is no such artifact.
SELECT *
FROM artifacts
WHERE id = :id;

-- name: list_artifacts_by_session(session_id, after_id, limit)
-- A page of a session's artifacts, oldest first.
SELECT *
FROM artifacts
WHERE session_id = :session_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_artifacts_by_type(artifact_type, after_id, limit)
-- A page of the artifacts of one type, oldest first.
SELECT *
FROM artifacts
WHERE artifact_type = :artifact_type AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: delete_artifact(id)<!
-- Delete an artifact's row. No row: there is no such artifact.
DELETE FROM artifacts
WHERE id = :id
RETURNING *;
