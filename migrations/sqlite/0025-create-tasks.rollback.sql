-- 0025-create-tasks, undone: all tasks and claims are lost, and whose turn it is.

DROP VIEW IF EXISTS active_leases;
DROP TABLE IF EXISTS task_turns;
DROP TABLE IF EXISTS tasks;
