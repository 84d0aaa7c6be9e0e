-- 0020-create-message-summaries, undone: the summaries of all jobs are lost.

DROP TABLE IF EXISTS message_summaries;
