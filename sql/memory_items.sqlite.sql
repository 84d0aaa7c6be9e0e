-- memory_items: the statements that look into JSON.

-- name: put_memory_item(id, job_id, kind, key, content, tags, created_at)<!
-- Differs: the lengths of JSON, which is text here and jsonb in PostgreSQL.
-- Make a note, or replace it, within the limits that hold for the job: they are compared where the note
-- is written, so that no race gets past them. No row: one of them forbids it.
INSERT INTO memory_items (id, job_id, kind, key, content, tags, created_at, updated_at)
SELECT
    :id,
    :job_id,
    :kind,
    :key,
    :content,
    :tags,
    :created_at,
    :created_at
FROM memory_limits AS l
WHERE
    l.id = coalesce(
        (
            SELECT own.id
            FROM memory_limits AS own
            WHERE own.job_id = :job_id
        ),
        (
            SELECT common.id
            FROM memory_limits AS common
            WHERE common.job_id IS NULL
        )
    )
    AND length(cast(:content AS BLOB)) <= l.max_item_bytes
    AND json_array_length(:tags) <= l.max_item_tags
    AND (
        EXISTS (
            SELECT 1
            FROM memory_items AS same
            WHERE same.job_id = :job_id AND same.kind = :kind AND same.key = :key
        )
        OR (
            SELECT count(*)
            FROM memory_items AS m
            WHERE m.job_id = :job_id
        ) < l.max_items
    )
ON CONFLICT (job_id, kind, key)
DO UPDATE SET
    content = excluded.content,
    tags = excluded.tags,
    updated_at = excluded.updated_at
RETURNING *;

-- name: measure_memory_item(job_id, kind, key, content, tags)^
-- Differs: the lengths of JSON, which is text here and jsonb in PostgreSQL.
-- What put_memory_item compares, each limit beside what the note would make of it.
SELECT
    l.max_item_bytes,
    length(cast(:content AS BLOB)) AS item_bytes,
    l.max_item_tags,
    json_array_length(:tags) AS item_tags,
    l.max_items,
    (
        SELECT count(*)
        FROM memory_items AS m
        WHERE m.job_id = :job_id AND (m.kind <> :kind OR m.key <> :key)
    )
    + 1 AS items
FROM memory_limits AS l
WHERE
    l.id = coalesce(
        (
            SELECT own.id
            FROM memory_limits AS own
            WHERE own.job_id = :job_id
        ),
        (
            SELECT common.id
            FROM memory_limits AS common
            WHERE common.job_id IS NULL
        )
    );

-- name: search_memory_items_with_all(job_id, tags, after_id, limit)
-- Differs: JSON arrays are taken apart by json_each here, compared by operators in PostgreSQL.
-- A page of the job's notes that have all of the tags, oldest first. Only the job's own are looked at.
SELECT m.*
FROM memory_items AS m
WHERE
    m.job_id = :job_id
    AND m.id > :after_id
    AND NOT EXISTS (
        SELECT 1
        FROM json_each(:tags) AS w
        WHERE
            NOT EXISTS (
                SELECT 1
                FROM json_each(m.tags) AS t
                WHERE t.value = w.value
            )
    )
ORDER BY m.id
LIMIT :limit;

-- name: search_memory_items_with_any(job_id, tags, after_id, limit)
-- Differs: JSON arrays are taken apart by json_each here, compared by operators in PostgreSQL.
-- A page of the job's notes that have at least one of the tags.
SELECT m.*
FROM memory_items AS m
WHERE
    m.job_id = :job_id
    AND m.id > :after_id
    AND EXISTS (
        SELECT 1
        FROM json_each(m.tags) AS t
        INNER JOIN json_each(:tags) AS w ON t.value = w.value
    )
ORDER BY m.id
LIMIT :limit;

-- name: search_memory_items_of_kind_with_all(job_id, kind, tags, after_id, limit)
-- Differs: JSON arrays are taken apart by json_each here, compared by operators in PostgreSQL.
-- The first, among the notes of one kind.
SELECT m.*
FROM memory_items AS m
WHERE
    m.job_id = :job_id
    AND m.kind = :kind
    AND m.id > :after_id
    AND NOT EXISTS (
        SELECT 1
        FROM json_each(:tags) AS w
        WHERE
            NOT EXISTS (
                SELECT 1
                FROM json_each(m.tags) AS t
                WHERE t.value = w.value
            )
    )
ORDER BY m.id
LIMIT :limit;

-- name: search_memory_items_of_kind_with_any(job_id, kind, tags, after_id, limit)
-- Differs: JSON arrays are taken apart by json_each here, compared by operators in PostgreSQL.
-- The second, among the notes of one kind.
SELECT m.*
FROM memory_items AS m
WHERE
    m.job_id = :job_id
    AND m.kind = :kind
    AND m.id > :after_id
    AND EXISTS (
        SELECT 1
        FROM json_each(m.tags) AS t
        INNER JOIN json_each(:tags) AS w ON t.value = w.value
    )
ORDER BY m.id
LIMIT :limit;
