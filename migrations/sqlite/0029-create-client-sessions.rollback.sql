-- 0029-create-client-sessions, undone: clients must connect again.

DROP TABLE IF EXISTS client_sessions;
