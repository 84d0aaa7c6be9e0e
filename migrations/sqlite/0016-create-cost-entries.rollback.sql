-- 0016-create-cost-entries, undone: what the totals of the jobs are made of is lost.

DROP TABLE IF EXISTS cost_entries;
