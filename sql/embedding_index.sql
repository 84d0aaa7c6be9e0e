-- embedding_index: texts with the vectors they are found by.
-- The vectors of a scope have the dimensions of its first; a statement that writes checks that itself.

-- name: upsert_embedding(id, scope, ref_id, text, vector, dimensions, created_at)<!
-- Add a text, or replace what its reference had. No row: the scope has other dimensions.
-- Needs: one writer, or two could each begin the scope, with different dimensions.
INSERT INTO embedding_index (id, scope, ref_id, text, vector, dimensions, created_at)
SELECT
    :id,
    :scope,
    :ref_id,
    :text,
    :vector,
    :dimensions,
    :created_at
WHERE
    coalesce(
        (
            SELECT e.dimensions
            FROM embedding_index AS e
            WHERE e.scope = :scope
            ORDER BY e.ref_id
            LIMIT 1
        ),
        :dimensions
    ) = :dimensions
ON CONFLICT (scope, ref_id)
DO UPDATE SET text = excluded.text, vector = excluded.vector, created_at = excluded.created_at
RETURNING *;

-- name: check_embedding_scope(scope, dimensions)^
-- Goes before upsert_embeddings in its transaction. No row: the scope has other dimensions.
-- Needs: one writer, or two could each begin the scope, with different dimensions.
SELECT 1 AS fits
WHERE
    coalesce(
        (
            SELECT e.dimensions
            FROM embedding_index AS e
            WHERE e.scope = :scope
            ORDER BY e.ref_id
            LIMIT 1
        ),
        :dimensions
    ) = :dimensions;

-- name: upsert_embeddings(id, scope, ref_id, text, vector, dimensions, created_at)*!
-- Many at once: all of them or none.
INSERT INTO embedding_index (id, scope, ref_id, text, vector, dimensions, created_at)
VALUES (:id, :scope, :ref_id, :text, :vector, :dimensions, :created_at)
ON CONFLICT (scope, ref_id)
DO UPDATE SET text = excluded.text, vector = excluded.vector, created_at = excluded.created_at;

-- name: get_embedding_dimensions(scope)$
-- How many dimensions the vectors of a scope have. No row: the scope is empty.
SELECT dimensions
FROM embedding_index
WHERE scope = :scope
ORDER BY ref_id
LIMIT 1;

-- name: get_embedding(scope, ref_id)^
-- No row: nothing is embedded under this reference.
SELECT *
FROM embedding_index
WHERE scope = :scope AND ref_id = :ref_id;

-- name: scan_embeddings(scope, dimensions, after_ref, limit)
-- A block of a scope's vectors in the order of their references, each of which a search sees once.
SELECT
    ref_id,
    vector
FROM embedding_index
WHERE scope = :scope AND ref_id > :after_ref AND dimensions = :dimensions
ORDER BY ref_id
LIMIT :limit;

-- name: delete_embedding(scope, ref_id)<!
-- No row: nothing is embedded under this reference.
DELETE FROM embedding_index
WHERE scope = :scope AND ref_id = :ref_id
RETURNING *;
