-- 0005-create-sessions, undone: the history of all sessions is lost.

DROP TABLE IF EXISTS sessions;
