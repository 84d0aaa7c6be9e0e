"""Plant faults in copies of the project, one at a time, and see that the suite catches each.

    python -m tests.mutants [part of a fault]

Each fault names the few test files that must catch it: tests of behaviour, none that compare with
a golden or generated file. They must pass on the project as it stands first, or a test that fails
anyway would pass for one that catches. A mutant that survives, or whose place is gone, fails the
command, and so does one that breaks the import of what it changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("metastore", "sql", "migrations", "tests", "docs", "pyproject.toml", "README.md",
          "Makefile", "yoyo.ini", "CHANGELOG.md", "LICENSE")  # fmt: skip

AT_ONCE = 2
"""How many mutants are tried at once, each in a copy of its own."""

TIMEOUT = 300
"""How long the tests of one mutant may take, in seconds. One that takes longer was not caught: its
tests may just have been slow, and whoever meets a hang wants a test that ends."""


class Mutant(NamedTuple):
    """A fault: what it breaks, where, and which tests must turn red.

    Attributes:
        old: what is replaced: its first occurrence behind `after`.
        tests: the files of the tests, with spaces between them.
        after: where in the file the search begins; a statement's name, for one.
    """

    fault: str
    file: str
    old: str
    new: str
    tests: str
    after: str = ""

    def planted(self, text: str) -> str | None:
        """Return the text with the fault; None if its place is gone."""
        begin = text.find(self.after)
        at = text.find(self.old, begin) if begin >= 0 else -1
        return None if at < 0 else text[:at] + self.new + text[at + len(self.old) :]


LANES = "metastore/backends/sqlite/lanes.py"
TRANSACTION = "metastore/backends/sqlite/transaction.py"
DATABASE_FILE = "metastore/backends/sqlite/database_file.py"
BACKEND = "tests/backends/test_sqlite.py"
BOUNDS = "tests/backends/test_bounds.py"
REPLACED = "tests/backends/test_replaced_files.py"
WORKTREES = "tests/repositories/test_worktrees.py"
WAITERS = "tests/repositories/test_lease_waiters.py"
TASKS = "tests/repositories/test_tasks.py"
LOCKS = "tests/repositories/test_project_locks.py"
BUDGETS = "tests/repositories/test_budget_reservations.py"
ENDED = "tests/test_ended.py"
AVAILABILITY = "tests/test_availability.py"

MUTANTS = [
    Mutant(
        "reserve does not look at the version",
        "sql/worktrees.sql",
        "AND version = :version",
        "AND :version = :version",
        WORKTREES,
        after="-- name: reserve_worktree",
    ),
    Mutant(
        "release does not look at the owner",
        "sql/worktrees.sql",
        "AND lease_owner = :lease_owner",
        "AND :lease_owner = :lease_owner",
        WORKTREES,
        after="-- name: release_worktree",
    ),
    Mutant(
        "renewal does not look at the token",
        "sql/worktrees.sql",
        "AND lease_token = :lease_token",
        "AND :lease_token = :lease_token",
        WORKTREES,
        after="-- name: renew_worktree",
    ),
    Mutant(
        "a checkout is recorded after the lease has expired",
        "sql/worktrees.sql",
        "AND lease_expires_at > :now",
        "AND :now = :now",
        WORKTREES,
        after="-- name: record_worktree_checkout",
    ),
    Mutant(
        "the guard of a transaction does not look at the expiry",
        "sql/worktrees.sql",
        "AND lease_expires_at > :now",
        "AND :now = :now",
        WORKTREES,
        after="-- name: worktree_is_leased",
    ),
    Mutant(
        "a release does not raise the fencing number",
        "sql/worktrees.sql",
        "version = version + 1,",
        "version = version,",
        WORKTREES,
        after="-- name: release_worktree",
    ),
    Mutant(
        "a reservation does not raise the fencing number",
        "sql/worktrees.sql",
        "version = version + 1,",
        "version = version,",
        WORKTREES,
        after="-- name: reserve_worktree",
    ),
    Mutant(
        "a held worktree is retired",
        "sql/worktrees.sql",
        "lease_expires_at <= :now",
        "lease_expires_at > :now",
        WORKTREES,
        after="-- name: retire_worktree",
    ),
    Mutant(
        "a held worktree is deleted",
        "sql/worktrees.sql",
        "lease_expires_at <= :now",
        "lease_expires_at > :now",
        WORKTREES,
        after="-- name: delete_worktree",
    ),
    Mutant(
        "an abandoned lease of every repository is given back",
        "sql/worktrees.sql",
        "AND lease_token = :lease_token",
        "AND :lease_token = :lease_token",
        AVAILABILITY,
        after="-- name: abandon_worktree",
    ),
    Mutant(
        "an expiry of a clock that jumped back is believed",
        "metastore/leasing/limits.py",
        "return now + MAX_TTL + CLOCK_SKEW",
        "return now + MAX_TTL * 300",
        WORKTREES,
    ),
    Mutant(
        "whoever comes later overtakes those who wait",
        "sql/worktrees.sqlite.sql",
        "AND position < :position",
        "AND position > :position",
        WORKTREES,
        after="-- name: acquire_worktree",
    ),
    Mutant(
        "whoever waits for another repository is in the way",
        "sql/worktrees.sqlite.sql",
        "AND resource_id = :repository_id",
        "AND :repository_id = :repository_id",
        f"{WORKTREES} {WAITERS}",
        after="-- name: acquire_worktree",
    ),
    Mutant(
        "a waiter does not see a worktree whose expiry is not believed",
        "sql/worktrees.sqlite.sql",
        "'') > :latest_credible_expiry",
        "'') > :latest_credible_expiry AND FALSE",
        AVAILABILITY,
        after="-- name: worktree_is_available",
    ),
    Mutant(
        "a waiter sees the free worktrees of every repository",
        "sql/worktrees.sqlite.sql",
        "AND w.repository_id = :repository_id",
        "AND :repository_id = :repository_id",
        AVAILABILITY,
        after="-- name: worktree_is_available",
    ),
    Mutant(
        "the most recently used worktree at the commit is taken",
        "sql/worktrees.sqlite.sql",
        "w.updated_at\n",
        "w.updated_at DESC\n",
        AVAILABILITY,
        after="AND w.commit_sha = :commit_sha\n                AND coalesce",
    ),
    Mutant(
        "a cancelled take is not given back",
        "metastore/repositories/leasable.py",
        "                await give_back(self._abandon(abandon), backend=self._scope.backend)",
        "                pass",
        WORKTREES,
    ),
    Mutant(
        "fencing numbers start again after a delete",
        "migrations/sqlite/0002-create-worktrees.sql",
        "SET number = old.version",
        "SET number = number",
        WORKTREES,
    ),
    Mutant(
        "a ticket that was cancelled stays",
        "metastore/leasing/queue.py",
        "if taken is None:\n            # A",
        "if False:\n            # A",
        AVAILABILITY,
    ),
    Mutant(
        "the tickets of those who died are never cleared away",
        "sql/lease_waiters.sql",
        "expires_at <= :now OR",
        "expires_at < '2' OR",
        WAITERS,
        after="-- name: delete_expired_lease_waiters",
    ),
    Mutant(
        "a ticket of a clock that was ahead is listed",
        "sql/lease_waiters.sql",
        "AND expires_at <= :latest_credible_ticket",
        "AND :latest_credible_ticket = :latest_credible_ticket",
        WAITERS,
        after="-- name: list_lease_waiters",
    ),
    Mutant(
        "a lock that runs is taken over",
        "sql/project_locks.sql",
        "project_locks.expires_at <= excluded.acquired_at",
        "project_locks.expires_at >= excluded.acquired_at",
        LOCKS,
    ),
    Mutant(
        "the waiters of any project block every project",
        "sql/project_locks.sql",
        "AND l.resource_id = :project_id",
        "AND :project_id = :project_id",
        f"{LOCKS} {WAITERS}",
        after="-- name: acquire_project_lock",
    ),
    Mutant(
        "a waiter is held up by the waiters of other projects",
        "sql/project_locks.sql",
        "AND l.resource_id = :project_id",
        "AND :project_id = :project_id",
        AVAILABILITY,
        after="-- name: project_lock_is_available",
    ),
    Mutant(
        "a waiter believes a lock of a clock that was ahead",
        "sql/project_locks.sql",
        "AND k.expires_at <= :latest_credible_expiry",
        "AND :latest_credible_expiry = :latest_credible_expiry",
        AVAILABILITY,
        after="-- name: project_lock_is_available",
    ),
    Mutant(
        "a page of expired locks leaves out those that expired at once",
        "sql/project_locks.sql",
        "(expires_at, id) > (:after, :after_id)",
        "expires_at > :after AND :after_id = :after_id",
        AVAILABILITY,
        after="-- name: list_expired_project_locks",
    ),
    Mutant(
        "a session that has ended locks its project",
        "sql/project_locks.sql",
        "            AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')",
        "",
        f"{LOCKS} {ENDED}",
        after="-- name: acquire_project_lock",
    ),
    Mutant(
        "the deadline counts from the end of a renewal",
        "metastore/leasing/holding.py",
        "deadline = begun + self._ttl",
        "deadline = loop.time() + self._ttl",
        "tests/test_leases.py",
    ),
    Mutant(
        "a lost lease takes the place of the body's error",
        "metastore/leasing/holding.py",
        "if was_lost and isinstance(error, asyncio.CancelledError) and not renewer.others_cancelled:",
        "if was_lost:",
        f"tests/test_leases.py {TASKS}",
    ),
    Mutant(
        "a cancellation by another is taken for a lost lease",
        "metastore/leasing/holding.py",
        " and not renewer.others_cancelled:",
        ":",
        "tests/test_leases.py",
    ),
    Mutant(
        "renewals that end unexpectedly are not noticed",
        "metastore/leasing/holding.py",
        "            self._lost = True\n            self.cause = error\n            self._body.cancel()",
        "            self.cause = error",
        "tests/test_leases.py",
    ),
    Mutant(
        "what was cancelled twice is not released",
        "metastore/leasing/holding.py",
        "    except asyncio.CancelledError:\n        await give_back(ending, backend=backend)\n        raise",
        "    except asyncio.CancelledError:\n        ending.cancel()\n        raise",
        "tests/test_leases.py",
    ),
    Mutant(
        "an abandoned task has begun",
        "sql/tasks.sql",
        "    started_at = NULL,\n",
        "",
        AVAILABILITY,
        after="-- name: abandon_task_claim",
    ),
    Mutant(
        "a released task has begun",
        "sql/tasks.sql",
        "    started_at = NULL,\n",
        "",
        TASKS,
        after="-- name: release_task_claim",
    ),
    Mutant(
        "every claimed task is abandoned with one",
        "sql/tasks.sql",
        "AND lease_token = :lease_token",
        "AND :lease_token = :lease_token",
        AVAILABILITY,
        after="-- name: abandon_task_claim",
    ),
    Mutant(
        "a claim that ran out completes its task",
        "sql/tasks.sql",
        "AND lease_expires_at > :now",
        "AND :now = :now",
        TASKS,
        after="-- name: complete_task_claim",
    ),
    Mutant(
        "a claim that ran out fails its task",
        "sql/tasks.sql",
        "AND lease_expires_at > :now",
        "AND :now = :now",
        TASKS,
        after="-- name: fail_task_claim",
    ),
    Mutant(
        "a claimed task is completed without its claim",
        "sql/tasks.sql",
        "AND lease_token IS NULL",
        "",
        TASKS,
        after="-- name: complete_task(",
    ),
    Mutant(
        "cancelling a task does not fence its holder",
        "sql/tasks.sql",
        "version = version + 1\nWHERE id = :id AND (status",
        "version = version\nWHERE id = :id AND (status",
        TASKS,
        after="-- name: cancel_task(",
    ),
    Mutant(
        "spread among several types ignores whose turn it is",
        "sql/tasks.sqlite.sql",
        "ORDER BY w.turn, t.created_at, t.id",
        "ORDER BY t.created_at, t.id",
        AVAILABILITY,
    ),
    Mutant(
        "a task of another type is claimed",
        "sql/tasks.sqlite.sql",
        "p.status = 'pending' AND p.task_type = wanted.value",
        "p.status = 'pending'",
        TASKS,
        after="-- name: claim_task_of_types(",
    ),
    Mutant(
        "an availability of types counts every task",
        "sql/tasks.sqlite.sql",
        "t.status = 'pending' AND t.task_type = wanted.value",
        "t.status = 'pending'",
        AVAILABILITY,
        after="-- name: task_of_types_is_available",
    ),
    Mutant(
        "a waiter does not see a claim that ran out",
        "sql/tasks.sqlite.sql",
        "WHERE t.lease_expires_at <= :now",
        "WHERE t.lease_expires_at < '2' AND :now = :now",
        AVAILABILITY,
        after="-- name: task_is_available",
    ),
    Mutant(
        "a waiter of types does not see a claim that is not believed",
        "sql/tasks.sqlite.sql",
        "t.task_type = wanted.value AND t.lease_expires_at > :latest_credible_expiry",
        "t.lease_expires_at > '9' || :latest_credible_expiry",
        AVAILABILITY,
        after="-- name: task_of_types_is_available",
    ),
    Mutant(
        "a task in a workflow moves no other up",
        "sql/workflow_tasks.sql",
        "WHEN moved.sequence < :sequence THEN workflow_tasks.sequence - 1",
        "WHEN moved.sequence < :sequence THEN workflow_tasks.sequence + 1",
        "tests/repositories/test_workflow_tasks.py",
    ),
    Mutant(
        "an archived workflow takes tasks",
        "sql/workflow_tasks.sql",
        " AND w.status <> 'archived'",
        "",
        f"{ENDED} tests/repositories/test_workflow_tasks.py",
        after="-- name: append_workflow_task",
    ),
    Mutant(
        "progress counts the tasks of every workflow",
        "sql/workflows.sql",
        "LEFT JOIN workflow_tasks AS m ON w.id = m.workflow_id",
        "LEFT JOIN workflow_tasks AS m ON 1",
        "tests/repositories/test_workflows.py tests/repositories/test_workflow_tasks.py",
    ),
    Mutant(
        "a session that has ended takes steps",
        "sql/steps.sql",
        "    AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')\n",
        "",
        ENDED,
        after="-- name: create_step_at",
    ),
    Mutant(
        "a step starts in a session that has ended",
        "sql/steps.sql",
        "            AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')\n",
        "",
        ENDED,
        after="-- name: start_step",
    ),
    Mutant(
        "a command is asked for in a session that has ended",
        "sql/commands.sql",
        "    AND (s.status = 'pending' OR s.status = 'in_progress' OR s.status = 'paused')\n",
        "",
        ENDED,
        after="-- name: create_command",
    ),
    Mutant(
        "a task that has ended calls tools",
        "sql/tool_executions.sql",
        " AND (t.status = 'pending' OR t.status = 'running')",
        "",
        ENDED,
        after="-- name: start_tool_execution",
    ),
    Mutant(
        "an expired token opens sessions",
        "sql/sessions.sql",
        " OR t.expires_at <= :created_at",
        "",
        f"{ENDED} tests/repositories/test_sessions.py",
        after="-- name: create_session",
    ),
    Mutant(
        "a reservation that is not believed counts as spent",
        "sql/budget_reservations.sqlite.sql",
        "            AND r.expires_at <= :latest_credible_expiry\n",
        "",
        BUDGETS,
    ),
    Mutant(
        "a reservation that is not believed counts as a request",
        "sql/budget_reservations.sqlite.sql",
        "                AND r.expires_at <= :latest_credible_expiry\n",
        "",
        BUDGETS,
        after="j.max_requests IS NULL",
    ),
    Mutant(
        "a budget shows reservations that are not believed",
        "sql/budget_reservations.sql",
        "        AND r.expires_at <= :latest_credible_expiry\n",
        "",
        BUDGETS,
    ),
    Mutant(
        "a job that was cancelled reserves",
        "sql/budget_reservations.sqlite.sql",
        "    AND NOT j.cancelled\n",
        "",
        BUDGETS,
    ),
    Mutant(
        "the reservations of every job count",
        "sql/budget_reservations.sqlite.sql",
        "            r.job_id = :job_id\n            AND",
        "            1\n            AND",
        BUDGETS,
    ),
    Mutant(
        "a wrong total of cached tokens is no discrepancy",
        "sql/cost_entries.sql",
        "    OR j.tokens_cached <> coalesce(sum(c.tokens_cached), 0)\n",
        "",
        "tests/repositories/test_cost_entries.py",
    ),
    Mutant(
        "a sum of costs includes the end of its period",
        "sql/cost_entries.sqlite.sql",
        "AND created_at < :until",
        "AND created_at <= :until",
        "tests/repositories/test_cost_entries.py",
        after="-- name: sum_costs(",
    ),
    Mutant(
        "a sum by job includes the end of its period",
        "sql/cost_entries.sqlite.sql",
        "AND created_at < :until",
        "AND created_at <= :until",
        "tests/repositories/test_cost_entries.py",
        after="-- name: sum_costs_by_job(",
    ),
    Mutant(
        "dates of `costs --since` are local",
        "metastore/cli/costs.py",
        "moment if moment.tzinfo else moment.replace(tzinfo=UTC)",
        "moment if moment.tzinfo else moment.astimezone(UTC)",
        "tests/cli/test_costs.py",
    ),
    Mutant(
        "amounts are rounded",
        "metastore/money.py",
        "traps=[Inexact, InvalidOperation]",
        "traps=[InvalidOperation]",
        "tests/test_money.py",
    ),
    Mutant(
        "cached tokens are priced as if they were read",
        "metastore/prices.py",
        "cache_read_tokens=tokens_cached",
        "cache_read_tokens=0",
        "tests/repositories/test_cost_entries.py",
    ),
    Mutant(
        "a client session is stale at the boundary",
        "sql/client_sessions.sql",
        "s.last_heartbeat < :beaten_before",
        "s.last_heartbeat <= :beaten_before",
        "tests/repositories/test_client_sessions.py",
    ),
    Mutant(
        "a client session of a clock that was ahead never ends",
        "sql/client_sessions.sql",
        " OR s.last_heartbeat > :latest_credible_beat)",
        " OR :latest_credible_beat IS NULL)",
        "tests/repositories/test_client_sessions.py",
    ),
    Mutant(
        "`admin list-tokens` prints one page",
        "metastore/paging.py",
        "        if page.next is None:\n            return\n",
        "        return\n",
        "tests/cli/test_admin.py",
    ),
    Mutant(
        "a token without scopes opens everything",
        "metastore/repositories/auth_tokens.py",
        "        return any(\n",
        "        return not self.scopes or any(\n",
        "tests/repositories/test_auth_tokens.py",
    ),
    Mutant(
        "an expired token is live",
        "metastore/repositories/auth_tokens.py",
        "self.expires_at > moment",
        "self.expires_at != moment",
        "tests/repositories/test_auth_tokens.py",
    ),
    Mutant(
        "a token that was replaced is replaced again",
        "sql/auth_tokens.sql",
        "    AND replaced_by IS NULL\n",
        "",
        "tests/repositories/test_auth_tokens.py",
    ),
    Mutant(
        "a replacement prolongs the old token",
        "sql/auth_tokens.sql",
        "CASE WHEN expires_at < :expires_at THEN expires_at ELSE :expires_at END",
        ":expires_at",
        "tests/repositories/test_auth_tokens.py",
    ),
    Mutant(
        "any live token stands in the way of a bootstrap",
        "sql/auth_tokens.sql",
        "LIKE '%\"*\"%'",
        "LIKE '%'",
        "tests/repositories/test_auth_tokens.py",
        after="-- name: bootstrap_token",
    ),
    Mutant(
        "a rotation overwrites a secret that was set meanwhile",
        "sql/configurations.sql",
        "AND version = :version\n    AND is_secret",
        "AND :version = :version\n    AND is_secret",
        "tests/repositories/test_configurations.py",
    ),
    Mutant(
        "a rotation overwrites a secret that was set anew",
        "sql/configurations.sql",
        "coalesce(incarnation, :incarnation) = :incarnation",
        ":incarnation = :incarnation",
        "tests/repositories/test_configurations.py",
    ),
    Mutant(
        "an update of a configuration does not look at the version",
        "sql/configurations.sql",
        "AND version = :version - 1",
        "AND :version = :version",
        "tests/repositories/test_configurations.py",
        after="-- name: update_configuration",
    ),
    Mutant(
        "a secret opens in another place",
        "metastore/secrets.py",
        "aes.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], associated)",
        "aes.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], None)",
        "tests/repositories/test_configurations.py tests/batteries/test_secrets.py",
    ),
    Mutant(
        "a key file that others may read is used",
        "metastore/secrets.py",
        "if mode & ~0o600:",
        "if mode & 0:",
        "tests/repositories/test_configurations.py tests/batteries/test_secrets.py tests/cli/test_config.py",
    ),
    Mutant(
        "a child's environment holds the keys",
        "metastore/environment.py",
        "if not name.startswith(PREFIX)",
        "if name",
        "tests/batteries/test_canaries.py",
    ),
    Mutant(
        "an unhashed event behind chained ones is accepted",
        "metastore/audit/links.py",
        "if late or self._unchained > self._start.unchained or self.links:",
        "if late or self._unchained > self._start.unchained:",
        "tests/repositories/test_audit_chains.py",
    ),
    Mutant(
        "the suffix of a purge is not checked",
        "metastore/audit/links.py",
        'if end.last != end.link + self._suffixes.get(end.length, ""):',
        "if False:",
        "tests/batteries/test_attacks.py",
    ),
    Mutant(
        "what a checkpoint passed over is no finding",
        "metastore/audit/links.py",
        "if end.passed_over:",
        "if False:",
        "tests/batteries/test_attacks.py",
    ),
    Mutant(
        "what a checkpoint noted is not compared",
        "metastore/audit/links.py",
        "if self._marks.get(count, self._last) != self._last:",
        "if False:",
        "tests/batteries/test_attacks.py",
    ),
    Mutant(
        "a removed stub is no finding",
        "metastore/audit/links.py",
        'return ("removed", "the chain is gone") if chain.entries or chain.heads else ("", "")',
        'return ("", "")',
        "tests/batteries/test_attacks.py",
    ),
    Mutant(
        "a follower skips an event",
        "sql/events.sql",
        "position > :after",
        "position > :after + 1",
        "tests/repositories/test_events.py",
        after="-- name: list_events(",
    ),
    Mutant(
        "a checkpoint signs with a key that stays",
        "metastore/sealing.py",
        "            _write(self._path, following)",
        "            pass",
        "tests/repositories/test_audit_chains.py tests/batteries/test_attacks.py",
    ),
    Mutant(
        "a path that climbs is taken",
        "metastore/sandbox.py",
        'if any(name in (b"", b".", b"..") for name in names):',
        'if any(name in (b"", b".") for name in names):',
        "tests/repositories/test_memory_files.py",
    ),
    Mutant(
        "an export follows a link to a folder",
        "metastore/sandbox.py",
        "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
        "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
        "tests/repositories/test_memory_files.py",
    ),
    Mutant(
        "the files of a job may exceed its limit together",
        "sql/memory_files.sql",
        ") + :size_bytes <= l.max_job_file_bytes",
        ") <= l.max_job_file_bytes",
        "tests/repositories/test_memory_files.py tests/repositories/test_memory_limits.py",
        after="-- name: create_memory_file(",
    ),
    Mutant(
        "the files of every job count",
        "sql/memory_files.sql",
        "WHERE f.job_id = :job_id\n    ) < l.max_files",
        "WHERE 1\n    ) < l.max_files",
        "tests/repositories/test_memory_files.py",
        after="-- name: create_memory_file(",
    ),
    Mutant(
        "a note's own size is not limited",
        "sql/memory_items.sqlite.sql",
        "<= l.max_item_bytes",
        ">= 0",
        "tests/repositories/test_memory_limits.py tests/repositories/test_memory_items.py",
        after="-- name: put_memory_item",
    ),
    Mutant(
        "a search for all tags finds any",
        "sql/memory_items.sqlite.sql",
        "            NOT EXISTS (\n                SELECT 1\n                FROM json_each(m.tags)",
        "            EXISTS (\n                SELECT 1\n                FROM json_each(m.tags)",
        "tests/repositories/test_memory_items.py",
        after="-- name: search_memory_items_of_kind_with_all",
    ),
    Mutant(
        "a search of vectors has no slack",
        "metastore/vectors.py",
        "least -= 2 * _SLACK",
        "least += 0",
        "tests/repositories/test_embedding_index.py",
    ),
    Mutant(
        "a scope takes vectors of other dimensions",
        "sql/embedding_index.sql",
        "    ) = :dimensions;",
        "    ) > 0;",
        "tests/repositories/test_embedding_index.py",
        after="-- name: check_embedding_scope",
    ),
    Mutant(
        "the link of a pull request is repeated",
        "sql/jobs.sqlite.sql",
        "WHEN :link IN (SELECT e.value FROM json_each(pr_links) AS e) THEN pr_links",
        "WHEN FALSE THEN pr_links",
        "tests/repositories/test_jobs.py",
    ),
    Mutant(
        "a job that is cancelled goes on",
        "sql/jobs.sql",
        "AND (status = 'running' OR status = 'paused') AND cancelled",
        "AND (status = 'running' OR status = 'paused')",
        "tests/repositories/test_jobs.py",
        after="-- name: acknowledge_job_cancel",
    ),
    Mutant(
        "callers are answered before COMMIT",
        LANES,
        '            connection.execute("COMMIT")\n        except BaseException as error:',
        "            for operation in batch:\n                loop = operation.future.get_loop()\n                loop.call_soon_threadsafe(operation.settle)\n            __import__('time').sleep(0.05)\n            connection.execute(\"COMMIT\")\n        except BaseException as error:",
        BACKEND,
    ),
    Mutant(
        "synchronous is NORMAL by default",
        DATABASE_FILE,
        'connection.execute(f"PRAGMA synchronous = {durability}")',
        'connection.execute("PRAGMA synchronous = NORMAL")',
        BACKEND,
    ),
    Mutant(
        "foreign keys are off",
        DATABASE_FILE,
        "PRAGMA foreign_keys = ON",
        "PRAGMA foreign_keys = OFF",
        BACKEND,
    ),
    Mutant(
        "deleted rows stay in the file",
        DATABASE_FILE,
        "PRAGMA secure_delete = ON",
        "PRAGMA secure_delete = OFF",
        f"{BACKEND} tests/batteries/test_canaries.py",
    ),
    Mutant(
        "files are made for everybody",
        DATABASE_FILE,
        "os.O_CLOEXEC, 0o600)",
        "os.O_CLOEXEC, 0o644)",
        BACKEND,
    ),
    Mutant(
        "a batch goes on when its transaction is gone",
        LANES,
        "                if not connection.in_transaction:\n                    raise BatchLostError from operation.error",
        "                pass",
        BACKEND,
    ),
    Mutant(
        "many rows are written without a transaction",
        LANES,
        "return len(self.calls) == 1 and not isinstance(self.calls[0].parameters, list)",
        "return len(self.calls) == 1",
        "tests/repositories/test_events.py",
    ),
    Mutant(
        "a failed operation of a batch is not undone",
        LANES,
        'connection.execute("ROLLBACK TO operation")',
        "pass",
        BACKEND,
    ),
    Mutant(
        "the writer is handed on without a ROLLBACK",
        TRANSACTION,
        "    def _roll_back(self) -> None:\n        roll_back(self._lane.connection.raw)",
        "    def _roll_back(self) -> None:\n        pass",
        BACKEND,
    ),
    Mutant(
        "a transaction commits whether or not its lease is held",
        TRANSACTION,
        'connection.execute("COMMIT" if held else "ROLLBACK")',
        'connection.execute("COMMIT")',
        BACKEND,
    ),
    Mutant(
        "a granted and cancelled turn is kept",
        LANES,
        "                self.release_turn()\n            raise",
        "                pass\n            raise",
        "tests/batteries/test_cancellation.py",
    ),
    Mutant(
        "a stray error in the thread is nobody's",
        LANES,
        "                for operation in operations:\n                    operation.fail(error)",
        "                return",
        "tests/backends/test_stray_errors.py",
    ),
    Mutant(
        "a batch commits into a file that was replaced",
        LANES,
        '            self.check_files()\n            connection.execute("COMMIT")\n        except',
        '            connection.execute("COMMIT")\n        except',
        REPLACED,
    ),
    Mutant(
        "a lone write goes into a file that was replaced",
        LANES,
        "        self.check_files()\n        return execute(connection, call)",
        "        return execute(connection, call)",
        REPLACED,
    ),
    Mutant(
        "a transaction commits into a file that was replaced",
        TRANSACTION,
        "                self._lane.check_files()",
        "                pass",
        REPLACED,
    ),
    Mutant(
        "closing deletes the log of the database that took the place",
        "metastore/backends/sqlite/backend.py",
        "lane.connection.leak()",
        "pass",
        REPLACED,
    ),
    Mutant(
        "a batch that is busy starts to wait anew",
        LANES,
        "since = self.time() if self._busy_since is None else self._busy_since",
        "since = self.time()",
        BOUNDS,
    ),
    Mutant(
        "a batch holds the writer as long as it likes",
        LANES,
        "if now() > ends_at:",
        "if now() > ends_at + 1:",
        BOUNDS,
    ),
    Mutant(
        "close waits for the write lock",
        LANES,
        "if now >= deadline or self.closed is not None:",
        "if now >= deadline:",
        BOUNDS,
    ),
    Mutant(
        "callers that wait for room are not woken by close",
        LANES,
        "        for room in self._room:\n            if not room.done():\n                room.set_result(None)",
        "        return",
        f"{BACKEND} {BOUNDS}",
    ),
    Mutant(
        "a checkpoint does not hold the write lock",
        LANES,
        "        self._when_free(connection, begin, self.time() + CHECKPOINT_PATIENCE)\n        try:\n            self.check_files()",
        "        try:\n            self.check_files()",
        f"{BACKEND} {BOUNDS}",
    ),
    Mutant(
        "another loop's write is queued",
        LANES,
        "if self.closed is not None or _get_running_loop() is not self._loop:",
        "if self.closed is not None:",
        "tests/backends/test_loops.py",
    ),
    Mutant(
        "the watcher does not poll again after a pause",
        "metastore/backends/sqlite/watcher.py",
        "                await asyncio.sleep(POLL_INTERVAL)\n        self._poller = None",
        "                await asyncio.sleep(POLL_INTERVAL)",
        BACKEND,
    ),
    Mutant(
        "a sweep removes the folders of the living",
        "metastore/backends/sqlite/memory.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/backends/test_sqlite_memory.py",
    ),
    Mutant(
        "a full disk is a busy one",
        "metastore/backends/sqlite/errors.py",
        'if name.startswith("SQLITE_FULL"):\n        return StoreFull',
        'if name.startswith("SQLITE_FULL"):\n        return StoreBusy',
        f"tests/backends/test_sqlite_errors.py {BACKEND}",
    ),
    Mutant(
        "a URL is resolved again and again",
        "metastore/backends/sqlite/url.py",
        "Path(os.path.realpath(name))",
        "Path(name)",
        REPLACED,
    ),
    Mutant(
        "a forked child opens its parent's file",
        DATABASE_FILE,
        "    if file in _inherited:",
        "    if file in _inherited and False:",
        "tests/backends/test_fork.py",
    ),
    Mutant(
        "a forked child closes what it inherited",
        DATABASE_FILE,
        "            _inherited.add(connection.file)\n        leak(connection)",
        "            _inherited.add(connection.file)",
        "tests/backends/test_fork.py",
    ),
    Mutant(
        "worker threads keep the interpreter alive",
        "metastore/backends/sqlite/connection.py",
        "self._thread.daemon = True",
        "self._thread.daemon = False",
        BACKEND,
    ),
    Mutant(
        "a store may be used after a fork",
        "metastore/backends/sqlite/backend.py",
        "os.register_at_fork(after_in_child=_after_fork)",
        "pass",
        BACKEND,
    ),
    Mutant(
        "edited migrations are not noticed",
        "metastore/migrations/status.py",
        '"applied" if same else "edited"',
        '"applied"',
        "tests/test_migrations.py",
    ),
    Mutant(
        "a rollback commits orphans",
        "metastore/migrations/bookkeeping.py",
        "            self._check_references(files, files.rollback_path)",
        "            pass",
        "tests/test_migrations.py",
    ),
    Mutant(
        "a migration commits orphans",
        "metastore/migrations/bookkeeping.py",
        "            self._check_references(files, files.path)",
        "            pass",
        "tests/test_migrations.py",
    ),
    Mutant(
        "adopting does not look again under the lock",
        "metastore/migrations/operations.py",
        "            _refuse_to_adopt(differences)\n            for",
        "            for",
        "tests/test_migrations.py",
    ),
    Mutant(
        "NaN is stored as null",
        "metastore/codec.py",
        "if it - it:",
        "if False:",
        "tests/test_codec.py",
    ),
    Mutant(
        "a naive time is taken",
        "metastore/codec.py",
        "if value.utcoffset() is None:",
        "if False:",
        "tests/test_codec.py",
    ),
    Mutant(
        "text with NUL is stored",
        "metastore/codec.py",
        '        if "\\0" in value:',
        "        if False:",
        "tests/test_codec.py",
    ),
    Mutant(
        "a page promises another behind the last",
        "metastore/paging.py",
        "if len(rows) > limit else None",
        "if len(rows) >= limit else None",
        "tests/repositories/test_repositories.py tests/repositories/test_projects.py",
    ),
    Mutant(
        "a busy fault is not taken back",
        "metastore/backends/sqlite/planted_faults.py",
        "            self._post(partial(wait, before))",
        "            pass",
        "tests/testing/test_faults.py",
    ),
    Mutant(
        "a large deletion is done in one piece",
        "metastore/deletion.py",
        "PIECE_ROWS = 250",
        "PIECE_ROWS = 250_000",
        "tests/repositories/test_deletions.py",
    ),
    Mutant(
        "rows of any size are deleted in one piece",
        "metastore/deletion.py",
        "PIECE_BYTES = 1 << 20",
        "PIECE_BYTES = 1 << 30",
        "tests/repositories/test_deletions.py",
    ),
    Mutant(
        "a large file is deleted in one piece",
        "metastore/deletion.py",
        "PIECE_CHUNKS = 4",
        "PIECE_CHUNKS = 4_000",
        "tests/repositories/test_deletions.py",
    ),
    Mutant(
        "health does not see a large log",
        "metastore/backends/sqlite/inspection.py",
        "files.wal_bytes >= LARGE_WAL",
        "files.wal_bytes >= LARGE_WAL * 1_000_000",
        "tests/test_health.py",
    ),
    Mutant(
        "health does not see a mode that lets others in",
        "metastore/backends/sqlite/inspection.py",
        "if mode & 0o077:",
        "if mode & 0:",
        "tests/test_health.py",
    ),
    Mutant(
        "an expired lease is explained as held",
        "metastore/explain.py",
        'return "held" if self._runs(worktree.lease_expires_at) else "expired"',
        'return "held"',
        "tests/test_explain.py",
    ),
    Mutant(
        "a store opens whatever limits the other processes have",
        "metastore/store.py",
        "            await store.lease_limits.check()",
        "            pass",
        "tests/repositories/test_lease_limits.py",
    ),
    Mutant(
        "a database whose clocks may be further wrong is opened",
        "metastore/repositories/lease_limits.py",
        "if (agreed.max_ttl, agreed.clock_skew) != (limits.MAX_TTL, limits.CLOCK_SKEW):",
        "if agreed.max_ttl != limits.MAX_TTL:",
        "tests/repositories/test_lease_limits.py",
    ),
    Mutant(
        "limits are replaced under open stores",
        "migrations/sqlite/0039-create-lease-limits.sql",
        "WHEN EXISTS (SELECT 1 FROM lease_limits)\nBEGIN",
        "WHEN FALSE\nBEGIN",
        "tests/repositories/test_lease_limits.py",
    ),
    Mutant(
        "limits are changed under open stores",
        "migrations/sqlite/0039-create-lease-limits.sql",
        "BEFORE UPDATE ON lease_limits FOR EACH ROW",
        "BEFORE UPDATE ON lease_limits FOR EACH ROW WHEN FALSE",
        "tests/repositories/test_lease_limits.py",
    ),
    Mutant(
        "limits are deleted under open stores",
        "migrations/sqlite/0039-create-lease-limits.sql",
        "BEFORE DELETE ON lease_limits FOR EACH ROW",
        "BEFORE DELETE ON lease_limits FOR EACH ROW WHEN FALSE",
        "tests/repositories/test_lease_limits.py",
    ),
    Mutant(
        "a worktree's version may be negative",
        "migrations/sqlite/0002-create-worktrees.sql",
        "CONSTRAINT worktrees_version_check CHECK (version >= 0),",
        "",
        "tests/test_checks.py",
    ),
    Mutant(
        "a chain may be shorter than what was purged of it",
        "migrations/sqlite/0031-create-audit-chains.sql",
        "CHECK (length >= purged AND purged >= 0",
        "CHECK (purged >= 0",
        "tests/test_checks.py",
    ),
    Mutant(
        "a job is cancelled that nobody asked to cancel",
        "migrations/sqlite/0014-create-jobs.sql",
        "CHECK (status <> 'cancelled' OR cancelled = 1)",
        "CHECK (cancelled IS NOT NULL)",
        "tests/test_checks.py",
    ),
    Mutant(
        "a star leaves out the last column",
        "metastore/statements.py",
        "for column in columns)",
        "for column in columns[:-1])",
        "tests/repositories/test_repositories.py tests/repositories/test_projects.py",
    ),
    Mutant(
        "a star gives the columns in another order",
        "metastore/statements.py",
        "for column in columns)",
        "for column in columns[::-1])",
        "tests/repositories/test_repositories.py tests/repositories/test_projects.py",
    ),
    Mutant(
        "a star stands for whatever columns the table has by now",
        "metastore/statements.py",
        'if not found["verb"]:',
        "if found:",
        "tests/test_store.py",
    ),
    Mutant(
        "a boolean is read as a number",
        "metastore/backends/sqlite/columns.py",
        "read_boolean=bool",
        "read_boolean=int",
        "tests/test_codec.py",
    ),
    Mutant(
        "every boolean is read as true",
        "metastore/backends/sqlite/columns.py",
        "read_boolean=bool",
        "read_boolean=lambda _: True",
        "tests/test_codec.py",
    ),
    Mutant(
        "a dialect's booleans are read as SQLite's",
        "metastore/codec.py",
        "        return columns.read_boolean",
        "        return lambda value: {0: False, 1: True}[int(value)] if type(value) is int else None",
        "tests/test_codec.py",
    ),
    Mutant(
        "a boolean is stored as a number",
        "metastore/codec.py",
        "if not isinstance(value, int) or isinstance(value, bool):",
        "if not isinstance(value, int):",
        "tests/test_codec.py",
        after="def integer_encoder",
    ),
    Mutant(
        "a list ends with its first page",
        "metastore/paging.py",
        "        if page.next is None:\n            return\n",
        "        return\n",
        "tests/test_paging.py",
    ),
    Mutant(
        "a list does not begin where it was told to",
        "metastore/paging.py",
        '    kwargs.setdefault("limit", MAX_PAGE)',
        '    kwargs = {"limit": kwargs.get("limit", MAX_PAGE)}',
        "tests/test_paging.py",
    ),
    Mutant(
        "a database behind a dangling link is made",
        "metastore/backends/sqlite/url.py",
        "return Path(os.path.realpath(folder), name)",
        "return Path(os.path.realpath(os.path.join(folder, name)))",
        "tests/batteries/test_bad_input.py",
    ),
]


class Copy:
    """A copy of the project that takes one mutant after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        # Bytecode is told stale by its source's time, and files change faster than clocks tick.
        self._times = count(1_000_000_000)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, folder / name)

    def test(self, tests: list[str], *options: str) -> tuple[int, str]:
        """Run tests in the copy; return the code and the last lines of what they print."""
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT if options == ("-x",) else None,
            check=False,
        )
        return ended.returncode, ended.stdout[-2_000:] + ended.stderr[-500:]

    def run(self, mutant: Mutant) -> str:
        """Plant the fault, run its tests and take it back; return what became of it."""
        file = self.folder / mutant.file
        text = file.read_text() if file.exists() else ""
        planted = mutant.planted(text)
        if planted is None:
            return "its place is gone"
        self._write(file, planted)
        try:
            code, output = self.test(mutant.tests.split(), "-x")
        except subprocess.TimeoutExpired:
            return f"no end in {TIMEOUT} s"
        finally:
            self._write(file, text)
        if code == 1:
            return "caught"
        return "SURVIVED" if code == 0 else f"broke the tests:\n{output}"

    def _write(self, file: Path, text: str) -> None:
        file.write_text(text)
        os.utime(file, times=(when := next(self._times), when))


def main(part: str = "") -> int:
    """Try every mutant whose fault has `part` in it; return how many were not caught."""
    mutants = [mutant for mutant in MUTANTS if part in mutant.fault]
    tests = sorted({file for mutant in mutants for file in mutant.tests.split()})
    with tempfile.TemporaryDirectory(prefix="metastore-mutants-") as folder:
        # Some tests give up root's rights, and the user they become must reach the copy.
        Path(folder).chmod(0o755)
        copies: SimpleQueue[Copy] = SimpleQueue()
        for n in range(AT_ONCE):
            copies.put(Copy(Path(folder) / str(n)))
        copy = copies.get()
        code, output = copy.test(tests, "-n", str(AT_ONCE), "--dist", "worksteal")
        copies.put(copy)
        if code != 0:
            sys.stdout.write(
                f"{output}\nThe tests fail without any mutant: whatever they catch says nothing.\n"
            )
            return 1

        def attempt(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                outcome = copy.run(mutant)
            finally:
                copies.put(copy)
            sys.stdout.write(f"{outcome:18} {mutant.fault}\n")
            sys.stdout.flush()
            return outcome.startswith("caught")

        with ThreadPoolExecutor(AT_ONCE) as threads:
            caught = sum(threads.map(attempt, mutants))
    sys.stdout.write(f"{caught} of {len(mutants)} mutants caught\n")
    return len(mutants) - caught


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
