"""Plant faults in a copy of the project, one at a time, and see that the suite catches each.

`make mutants` runs it. A mutant that survives, or whose place is not found any more, fails it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("metastore", "sql", "migrations", "tests", "docs", "pyproject.toml", "README.md",
          "Makefile", "yoyo.ini", "CHANGELOG.md", "LICENSE")  # fmt: skip


TIMEOUT = 90
"""How long the tests of one mutant may take, in seconds; a fault may make them hang."""


class Mutant(NamedTuple):
    """A fault: what it breaks, where, and which tests must turn red."""

    fault: str
    file: str
    old: str
    new: str
    tests: str


WORKTREES = "tests/repositories/test_worktrees.py"
BACKEND = "tests/backends/test_sqlite.py"
LANES = "metastore/backends/sqlite/lanes.py"
TRANSACTION = "metastore/backends/sqlite/transaction.py"

MUTANTS = [
    Mutant(
        "reserve does not look at the version",
        "sql/worktrees.sql",
        "    id = :id\n    AND version = :version\n    AND state = 'ready'",
        "    id = :id\n    AND :version = :version\n    AND state = 'ready'",
        WORKTREES,
    ),
    Mutant(
        "release does not look at the owner",
        "sql/worktrees.sql",
        "    version = version + 1,\n    updated_at = :now\nWHERE\n    id = :id\n"
        "    AND version = :version\n    AND lease_owner = :lease_owner",
        "    version = version + 1,\n    updated_at = :now\nWHERE\n    id = :id\n"
        "    AND version = :version\n    AND :lease_owner = :lease_owner",
        WORKTREES,
    ),
    Mutant(
        "the guard of a transaction does not look at the expiry",
        "sql/worktrees.sql",
        "SELECT id\nFROM worktrees\nWHERE\n    id = :id\n    AND version = :version\n"
        "    AND lease_owner = :lease_owner\n    AND lease_token = :lease_token\n"
        "    AND lease_expires_at > :now",
        "SELECT id\nFROM worktrees\nWHERE\n    id = :id\n    AND version = :version\n"
        "    AND lease_owner = :lease_owner\n    AND lease_token = :lease_token\n"
        "    AND :now = :now",
        WORKTREES,
    ),
    Mutant(
        "a release does not raise the fencing number",
        "sql/worktrees.sql",
        "    lease_expires_at = NULL,\n    version = version + 1,\n    updated_at = :now\nWHERE\n"
        "    id = :id\n    AND version",
        "    lease_expires_at = NULL,\n    version = version,\n    updated_at = :now\nWHERE\n"
        "    id = :id\n    AND version",
        WORKTREES,
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
        "        AND position < :position",
        "        AND position > :position",
        WORKTREES,
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
        "    SET number = old.version",
        "    SET number = number",
        WORKTREES,
    ),
    Mutant(
        "a lock that runs is taken over",
        "sql/project_locks.sql",
        "project_locks.expires_at <= excluded.acquired_at",
        "project_locks.expires_at >= excluded.acquired_at",
        "tests/repositories/test_project_locks.py",
    ),
    Mutant(
        "callers are answered before COMMIT",
        LANES,
        '            connection.execute("COMMIT")\n        except BaseException as error:',
        "            for operation in batch:\n"
        "                loop = operation.future.get_loop()\n"
        "                loop.call_soon_threadsafe(operation.settle)\n"
        "            __import__('time').sleep(0.05)\n"
        '            connection.execute("COMMIT")\n        except BaseException as error:',
        BACKEND,
    ),
    Mutant(
        "synchronous is NORMAL by default",
        "metastore/backends/sqlite/database_file.py",
        'connection.execute(f"PRAGMA synchronous = {durability}")',
        'connection.execute("PRAGMA synchronous = NORMAL")',
        BACKEND,
    ),
    Mutant(
        "foreign keys are off",
        "metastore/backends/sqlite/database_file.py",
        "PRAGMA foreign_keys = ON",
        "PRAGMA foreign_keys = OFF",
        BACKEND,
    ),
    Mutant(
        "files are made for everybody",
        "metastore/backends/sqlite/database_file.py",
        "os.O_CLOEXEC, 0o600)",
        "os.O_CLOEXEC, 0o644)",
        BACKEND,
    ),
    Mutant(
        "a batch goes on when its transaction is gone",
        LANES,
        "                if not connection.in_transaction:\n"
        "                    raise BatchLostError from operation.error",
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
        "tests/backends/test_replaced_files.py",
    ),
    Mutant(
        "a lone write goes into a file that was replaced",
        LANES,
        "        self.check_files()\n        return execute(connection, call)",
        "        return execute(connection, call)",
        "tests/backends/test_replaced_files.py",
    ),
    Mutant(
        "a transaction commits into a file that was replaced",
        TRANSACTION,
        "                self._lane.check_files()",
        "                pass",
        "tests/backends/test_replaced_files.py",
    ),
    Mutant(
        "closing deletes the log of the database that took the place",
        "metastore/backends/sqlite/backend.py",
        "            lane.connection.leak()\n",
        "",
        "tests/backends/test_replaced_files.py",
    ),
    Mutant(
        "a batch that is busy starts to wait anew",
        LANES,
        "since = self.time() if self._busy_since is None else self._busy_since",
        "since = self.time()",
        "tests/backends/test_bounds.py",
    ),
    Mutant(
        "a batch holds the writer as long as it likes",
        LANES,
        "                if now() > ends_at:",
        "                if now() > ends_at + 1:",
        "tests/backends/test_bounds.py",
    ),
    Mutant(
        "close waits for the write lock",
        LANES,
        "if now >= deadline or self.closed is not None:",
        "if now >= deadline:",
        "tests/backends/test_bounds.py",
    ),
    Mutant(
        "another loop's write is queued",
        LANES,
        "        if self.closed is not None or _get_running_loop() is not self._loop:",
        "        if self.closed is not None:",
        "tests/backends/test_loops.py",
    ),
    Mutant(
        "a URL is resolved again and again",
        "metastore/urls.py",
        "Path(os.path.realpath(rest[1:]))",
        "Path(rest[1:])",
        "tests/backends/test_replaced_files.py",
    ),
    Mutant(
        "a forked child opens its parent's file",
        "metastore/backends/sqlite/database_file.py",
        "    if file in _inherited:",
        "    if file in _inherited and False:",
        "tests/backends/test_fork.py",
    ),
    Mutant(
        "a forked child closes what it inherited",
        "metastore/backends/sqlite/database_file.py",
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
        "metastore/migrations/bookkeeping.py",
        'MigrationStatus(id_, "applied" if same else "edited"',
        'MigrationStatus(id_, "applied"',
        "tests/test_migrations.py",
    ),
    Mutant(
        "a token without scopes opens everything",
        "metastore/repositories/auth_tokens.py",
        "        return any(\n            granted in (scope",
        "        return not self.scopes or any(\n            granted in (scope",
        "tests/repositories/test_auth_tokens.py",
    ),
    Mutant(
        "NaN is stored as null",
        "metastore/codec.py",
        "        if not same:",
        "        if not same and False:",
        "tests/test_codec.py",
    ),
]


def run(mutant: Mutant, folder: Path) -> str:
    """Plant the fault in a fresh copy and run its tests; return what became of it."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, copy / name)
    file = copy / mutant.file
    text = file.read_text()
    if text.count(mutant.old) < 1:
        return "its place is gone"
    file.write_text(text.replace(mutant.old, mutant.new, 1))
    try:
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.tests],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "caught: it hangs"
    return "caught" if tests.returncode == 1 else "SURVIVED"


def main() -> int:
    """Try every mutant; return how many were not caught."""
    escaped = 0
    with tempfile.TemporaryDirectory(prefix="metastore-mutants-") as folder:
        for mutant in MUTANTS:
            outcome = run(mutant, Path(folder))
            escaped += not outcome.startswith("caught")
            sys.stdout.write(f"{outcome:18} {mutant.fault}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(MUTANTS) - escaped} of {len(MUTANTS)} mutants caught\n")
    return escaped


if __name__ == "__main__":
    sys.exit(main() > 0)
