-- 0009-create-commands, undone: the commands of all sessions are lost.

DROP TABLE IF EXISTS commands;
