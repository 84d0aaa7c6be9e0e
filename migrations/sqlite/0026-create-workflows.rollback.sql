-- 0026-create-workflows, undone: all workflows are lost.

DROP TABLE IF EXISTS workflows;
