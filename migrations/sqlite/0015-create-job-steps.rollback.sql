-- 0015-create-job-steps, undone: the steps of all jobs are lost.

DROP TABLE IF EXISTS job_steps;
