-- 0024-create-job-views, undone: nothing is lost.

DROP VIEW IF EXISTS cost_by_day;
DROP VIEW IF EXISTS job_costs;
DROP VIEW IF EXISTS job_progress;
