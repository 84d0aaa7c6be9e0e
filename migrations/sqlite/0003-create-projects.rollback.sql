-- 0003-create-projects, undone: the projects and their settings are lost.

DROP TABLE IF EXISTS projects;
