-- 0019-create-memory-files, undone: the files of all jobs are lost.

DROP TABLE IF EXISTS memory_file_uploads;
DROP TABLE IF EXISTS memory_files;
DROP TABLE IF EXISTS memory_file_chunks;
