-- 0011-create-debugger-state, undone: the checkpoints of all sessions are lost.

DROP TABLE IF EXISTS debugger_state;
