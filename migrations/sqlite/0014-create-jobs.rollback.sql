-- 0014-create-jobs, undone: the history and the cost totals of all jobs are lost.

DROP TABLE IF EXISTS jobs;
