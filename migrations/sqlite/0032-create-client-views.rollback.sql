-- 0032-create-client-views, undone: nothing is lost.

DROP VIEW IF EXISTS stale_clients;
