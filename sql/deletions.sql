-- deletions: rows that are being deleted in pieces, with what belongs to them.
-- The tables that are deleted from mark their rows here, and triggers remove the mark with the row.

-- name: list_deletions(resource, after_place, limit)
-- A page of the rows of a table that are being deleted, or were left half deleted.
SELECT *
FROM deletions
WHERE resource = :resource AND resource_id > :after_place
ORDER BY resource_id
LIMIT :limit;
