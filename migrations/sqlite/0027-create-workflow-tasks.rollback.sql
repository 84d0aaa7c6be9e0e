-- 0027-create-workflow-tasks, undone: which tasks belong to which workflow is lost.

DROP TABLE IF EXISTS workflow_tasks;
