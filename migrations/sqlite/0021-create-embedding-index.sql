-- 0021-create-embedding-index: texts with the vectors they are found by.
--
-- Why:      an agent looks up documents and notes by meaning.
-- Locks:    none (new table).
-- Rollback: drops the table; every text must be embedded again.
--
-- depends: 0020-create-message-summaries

CREATE TABLE IF NOT EXISTS embedding_index (
    -- Embedded texts. The vectors of a scope have the same number of dimensions.
    id TEXT NOT NULL PRIMARY KEY,
    -- What is searched together: `doc`, `memory`, …
    scope TEXT NOT NULL,
    -- What the text is of, in the caller's terms.
    ref_id TEXT NOT NULL,
    text TEXT NOT NULL,
    -- float32, little-endian, one after the other; never all zero.
    vector BLOB NOT NULL,
    -- How many numbers the vector has.
    dimensions INTEGER NOT NULL,
    -- When this text was embedded.
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CONSTRAINT embedding_index_id_check CHECK (length(id) = 36),
    CONSTRAINT embedding_index_scope_check CHECK (length(scope) > 0 AND length(scope) <= 255),
    CONSTRAINT embedding_index_ref_id_check CHECK (length(ref_id) > 0 AND length(ref_id) <= 255),
    CONSTRAINT embedding_index_vector_check CHECK (length(vector) = 4 * dimensions),
    CONSTRAINT embedding_index_dimensions_check CHECK (dimensions > 0),
    CONSTRAINT embedding_index_created_at_check CHECK (created_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- The order in which a scope is searched, block by block.
CREATE UNIQUE INDEX IF NOT EXISTS ix_embedding_index_scope_ref_id
ON embedding_index (scope, ref_id);
