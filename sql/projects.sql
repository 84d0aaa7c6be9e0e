-- projects: the projects that sessions work on, one for each canonical path.

-- name: ensure_project(id, path, name, created_at)<!
-- Register a project when it is first seen, touch it otherwise; a name that is not given and the
-- configuration stay as they are.
INSERT INTO projects (id, path, name, config, created_at, updated_at)
VALUES (:id, :path, :name, '{}', :created_at, :created_at)
ON CONFLICT (path)
DO UPDATE SET name = coalesce(:name, projects.name), updated_at = :created_at
RETURNING *;

-- name: ensure_configured_project(id, path, name, config, created_at)<!
-- The same, and the configuration is replaced as a whole.
INSERT INTO projects (id, path, name, config, created_at, updated_at)
VALUES (:id, :path, :name, :config, :created_at, :created_at)
ON CONFLICT (path)
DO UPDATE SET name = coalesce(:name, projects.name), config = :config, updated_at = :created_at
RETURNING *;

-- name: get_project(id)^
-- No row: there is no such project.
SELECT *
FROM projects
WHERE id = :id;

-- name: find_project_by_path(path)^
-- No row: no session has worked on this path.
SELECT *
FROM projects
WHERE path = :path;

-- name: list_projects(after_id, limit)
-- A page in the order in which the projects were first seen.
SELECT *
FROM projects
WHERE id > :after_id
ORDER BY id
LIMIT :limit;

-- name: delete_project(id)<!
-- Refused by the foreign key while sessions refer to its path; its lock goes with it.
-- No row: there was none.
DELETE FROM projects
WHERE id = :id
RETURNING *;
