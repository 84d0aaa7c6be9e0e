-- 0013-create-views, undone: nothing is lost.

DROP VIEW IF EXISTS session_overview;
