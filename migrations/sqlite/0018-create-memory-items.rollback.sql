-- 0018-create-memory-items, undone: the notes of all jobs are lost.

DROP TABLE IF EXISTS memory_items;
