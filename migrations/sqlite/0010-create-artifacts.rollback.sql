-- 0010-create-artifacts, undone: what is known of the produced files is lost.

DROP TABLE IF EXISTS artifacts;
