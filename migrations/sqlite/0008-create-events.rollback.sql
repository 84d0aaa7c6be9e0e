-- 0008-create-events, undone: the events of all sessions are lost.

DROP TABLE IF EXISTS events;
