-- 0023-create-context-metrics, undone: the metrics of all jobs are lost.

DROP TABLE IF EXISTS context_metrics;
