-- 0007-create-steps, undone: the steps of all sessions are lost.

DROP TABLE IF EXISTS steps;
