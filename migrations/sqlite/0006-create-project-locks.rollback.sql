-- 0006-create-project-locks, undone: the locks that are held are lost, with their fencing numbers.

DROP TABLE IF EXISTS project_locks;
