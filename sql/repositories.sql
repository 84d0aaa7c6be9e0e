-- repositories: the upstream repositories whose worktrees are leased.

-- name: create_repository(id, name, remote_url, default_branch, metadata, created_at)<!
-- Register a repository; its name is taken once.
INSERT INTO repositories (id, name, remote_url, default_branch, metadata, created_at, updated_at)
VALUES (:id, :name, :remote_url, :default_branch, :metadata, :created_at, :created_at)
RETURNING *;

-- name: get_repository(id)^
-- No row: there is no such repository.
SELECT *
FROM repositories
WHERE id = :id;

-- name: find_repository_by_name(name)^
-- No row: no repository has this name.
SELECT *
FROM repositories
WHERE name = :name;

-- name: list_repositories(after_id, limit)
-- A page in the order of registration.
SELECT *
FROM repositories
WHERE id > :after_id
ORDER BY id
LIMIT :limit;

-- name: update_repository(id, remote_url, default_branch, metadata, updated_at)<!
-- Change the upstream's details. No row: there is no such repository.
UPDATE repositories
SET
    remote_url = :remote_url,
    default_branch = :default_branch,
    metadata = :metadata,
    updated_at = :updated_at
WHERE id = :id
RETURNING *;

-- name: delete_repository(id)<!
-- Refused by the foreign keys while it has worktrees or sessions. No row: there was none.
DELETE FROM repositories
WHERE id = :id
RETURNING *;
