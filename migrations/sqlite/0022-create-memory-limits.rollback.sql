-- 0022-create-memory-limits, undone: limits that were set are lost.

DROP TABLE IF EXISTS memory_limits;
