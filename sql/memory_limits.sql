-- memory_limits: how much a job may remember.
-- A job has its own row, or the one of all jobs, whose job_id is NULL, holds for it. The statements that
-- write items and files compare with it themselves.

-- name: get_memory_limits(job_id)^
-- The row that holds for a job.
SELECT *
FROM memory_limits
WHERE
    id = coalesce(
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

-- name: get_default_memory_limits()^
-- The row that holds for jobs without their own.
SELECT *
FROM memory_limits
WHERE job_id IS NULL;

-- name: set_memory_limits(id, job_id, max_items, max_item_bytes, max_item_tags, max_files, max_file_bytes, max_job_file_bytes, created_at)<!
-- Give a job its own limits, or others. NULL leaves a limit as it is for the job, and so is decided where
-- it is written: of two callers who change different limits, neither undoes the other.
-- A job without its own begins with the default.
INSERT INTO memory_limits (
    id,
    job_id,
    max_items,
    max_item_bytes,
    max_item_tags,
    max_files,
    max_file_bytes,
    max_job_file_bytes,
    created_at,
    updated_at
)
SELECT
    :id,
    :job_id,
    coalesce(:max_items, common.max_items),
    coalesce(:max_item_bytes, common.max_item_bytes),
    coalesce(:max_item_tags, common.max_item_tags),
    coalesce(:max_files, common.max_files),
    coalesce(:max_file_bytes, common.max_file_bytes),
    coalesce(:max_job_file_bytes, common.max_job_file_bytes),
    :created_at,
    :created_at
FROM memory_limits AS common
WHERE common.job_id IS NULL
ON CONFLICT (job_id)
DO UPDATE SET
    max_items = coalesce(:max_items, memory_limits.max_items),
    max_item_bytes = coalesce(:max_item_bytes, memory_limits.max_item_bytes),
    max_item_tags = coalesce(:max_item_tags, memory_limits.max_item_tags),
    max_files = coalesce(:max_files, memory_limits.max_files),
    max_file_bytes = coalesce(:max_file_bytes, memory_limits.max_file_bytes),
    max_job_file_bytes = coalesce(:max_job_file_bytes, memory_limits.max_job_file_bytes),
    updated_at = excluded.updated_at
RETURNING *;

-- name: set_default_memory_limits(max_items, max_item_bytes, max_item_tags, max_files, max_file_bytes, max_job_file_bytes, updated_at)<!
-- Change what holds for jobs without their own limits. NULL leaves a limit as it is.
UPDATE memory_limits
SET
    max_items = coalesce(:max_items, max_items),
    max_item_bytes = coalesce(:max_item_bytes, max_item_bytes),
    max_item_tags = coalesce(:max_item_tags, max_item_tags),
    max_files = coalesce(:max_files, max_files),
    max_file_bytes = coalesce(:max_file_bytes, max_file_bytes),
    max_job_file_bytes = coalesce(:max_job_file_bytes, max_job_file_bytes),
    updated_at = :updated_at
WHERE job_id IS NULL
RETURNING *;

-- name: delete_memory_limits(job_id)<!
-- Take a job's own limits away. No row: it has none.
DELETE FROM memory_limits
WHERE job_id = :job_id
RETURNING *;
