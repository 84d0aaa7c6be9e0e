-- memory_items: what an agent notes for later, one note for each kind and key.

-- name: get_memory_item(job_id, kind, key)^
-- No row: the job has no such note.
SELECT *
FROM memory_items
WHERE job_id = :job_id AND kind = :kind AND key = :key;

-- name: list_memory_items_by_job(job_id, after_id, limit)
-- A page of a job's notes, in the order in which they were first made.
SELECT *
FROM memory_items
WHERE job_id = :job_id AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: list_memory_items_by_kind(job_id, kind, after_id, limit)
-- The same, of one kind.
SELECT *
FROM memory_items
WHERE job_id = :job_id AND kind = :kind AND id > :after_id
ORDER BY id
LIMIT :limit;

-- name: delete_memory_item(job_id, kind, key)<!
-- No row: the job has no such note.
DELETE FROM memory_items
WHERE job_id = :job_id AND kind = :kind AND key = :key
RETURNING *;
