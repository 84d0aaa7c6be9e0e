-- 0031-create-audit-chains, undone: nothing vouches for the rows any more.

DROP TRIGGER IF EXISTS tasks_purge_chain;
DROP TRIGGER IF EXISTS sessions_purge_chain;
DROP TRIGGER IF EXISTS tool_executions_chain_end;
DROP TRIGGER IF EXISTS tool_executions_chain_start;
DROP TRIGGER IF EXISTS events_chain;

ALTER TABLE events DROP COLUMN hash;

DROP TABLE IF EXISTS audit_checkpoints;
DROP TABLE IF EXISTS audit_chains;
