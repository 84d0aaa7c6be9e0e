-- 0028-create-tool-executions, undone: the audit log of all tasks is lost.

DROP TABLE IF EXISTS tool_executions;
