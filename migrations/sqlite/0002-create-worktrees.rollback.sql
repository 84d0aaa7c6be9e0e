-- 0002-create-worktrees, undone: the registered worktrees, their leases and all fencing numbers are lost.

DROP TABLE IF EXISTS worktrees;
DROP TABLE IF EXISTS fencing_floors;
