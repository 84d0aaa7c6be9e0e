-- 0001-create-repositories, undone: the registered repositories are lost.

DROP TABLE IF EXISTS repositories;
