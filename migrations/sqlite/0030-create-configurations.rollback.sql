-- 0030-create-configurations, undone: every setting is lost.

DROP TABLE IF EXISTS configurations;
