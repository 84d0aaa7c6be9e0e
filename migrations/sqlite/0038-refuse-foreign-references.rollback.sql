-- 0038-refuse-foreign-references, undone: nothing is lost.

DROP TRIGGER IF EXISTS context_metrics_step_id_insert;

DROP TRIGGER IF EXISTS context_metrics_step_id_update;

DROP TRIGGER IF EXISTS message_summaries_step_id_insert;

DROP TRIGGER IF EXISTS message_summaries_step_id_update;

DROP TRIGGER IF EXISTS artifacts_command_id_insert;

DROP TRIGGER IF EXISTS artifacts_command_id_update;

DROP TRIGGER IF EXISTS sessions_worktree_id_insert;

DROP TRIGGER IF EXISTS sessions_worktree_id_update;
