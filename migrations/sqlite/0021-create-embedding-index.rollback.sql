-- 0021-create-embedding-index, undone: every text must be embedded again.

DROP TABLE IF EXISTS embedding_index;
