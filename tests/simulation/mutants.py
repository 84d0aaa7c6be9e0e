"""Put faults back into a copy of the project, and see after how many seeds each is found.

    python -m tests.simulation.mutants [part of a name]

The project as it stands must hold for the same seeds first: otherwise a fault that was there before
would pass for the one that was planted. A fault that no seed finds, or whose place is gone, fails
it, and so does a copy in which the simulation itself breaks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("metastore", "sql", "migrations", "tests/simulation")
SEEDS = 200
TIMEOUT = 600
"""How long the search for one fault may take, in seconds."""

HOLDS = "holds"
FOUND = "seed "

SEARCH = f"""
from pathlib import Path

import metastore
from tests.simulation.run import first_failure, is_finding

assert Path(metastore.__file__).is_relative_to(Path.cwd()), "this is not the copy"
found = first_failure(range({SEEDS}))
if found is None:
    print("{HOLDS}")
else:
    what = "{FOUND}" if is_finding(found[1]) else "the simulation broke at seed "
    print(f"{{what}}{{found[0]}}: {{str(found[1])[:100] or repr(found[1])}}")
"""


class Mutant(NamedTuple):
    """A fault, and the edits that put it back: file, old text, new text, one place each."""

    fault: str
    edits: list[tuple[str, str, str]]


LANES = "metastore/backends/sqlite/lanes.py"
TRANSACTION = "metastore/backends/sqlite/transaction.py"
LIMITS = "metastore/leasing/limits.py"
HOLDING = "metastore/leasing/holding.py"
QUEUE = "metastore/leasing/queue.py"
WORKTREES = "sql/worktrees.sql"
TAKES = "sql/worktrees.sqlite.sql"
LOCKS = "sql/project_locks.sql"
TASKS = "sql/tasks.sql"

RENEW_SET = "        ELSE lease_expires_at\n    END,\n    updated_at = :now\nWHERE\n    id = :id\n"
RELEASE_SET = (
    "    lease_expires_at = NULL,\n    version = version + 1,\n    updated_at = :now\n"
    "WHERE\n    id = :id\n    AND version = :version\n"
)
HELD = "    AND lease_owner = :lease_owner\n    AND lease_token = :lease_token\n"
GUARD = (
    "-- The guard of a transaction. No row: the lease is lost.\n"
    "-- Needs: one writer, or the lease may be taken over before the transaction commits.\n"
    "SELECT id\nFROM worktrees\nWHERE\n    id = :id\n"
)

DRAW = "ticket = await draw()\n"

MUTANTS = [
    Mutant(
        "a hop that raises answers nobody",
        [
            (
                LANES,
                "                for operation in operations:\n",
                "                raise\n                for operation in operations:\n",
            )
        ],
    ),
    Mutant(
        "each of a batch waits for the lock in turn",
        [
            (
                LANES,
                "                waited = self._has_waited(error)\n",
                "                raise BatchLostError from error\n"
                "                waited = self._has_waited(error)\n",
            ),
            (LANES, "return max(asked_at, since) + self", "return self._loop.time() + self"),
        ],
    ),
    Mutant(
        "a store is used from another loop",
        [(LANES, "        if _get_running_loop() is not self._loop:", "        if False:")],
    ),
    Mutant(
        "tickets of a clock that was ahead are believed",
        [
            (
                LIMITS,
                "    return now + TICKET_TTL + CLOCK_SKEW",
                "    return now + TICKET_TTL * 1_000_000 + CLOCK_SKEW",
            )
        ],
    ),
    Mutant(
        "renewals end unnoticed on an unexpected error",
        [
            (
                HOLDING,
                "        if not self._stopped:\n            self._lost = True",
                "        if not self._stopped and error is None:\n            self._lost = True",
            )
        ],
    ),
    Mutant(
        "the body's error goes on before the release",
        [
            (
                HOLDING,
                "        await give_back(end(error), backend=backend)\n        if was_lost",
                "        finish_in_background(end(error), backend=backend)\n        if was_lost",
            )
        ],
    ),
    Mutant(
        "a cancelled draw leaves its ticket",
        [(QUEUE, f"    try:\n        {DRAW}", f"    {DRAW}    try:\n")],
    ),
    Mutant(
        "reserve does not look at the version",
        [
            (
                WORKTREES,
                "    id = :id\n    AND version = :version\n    AND state = 'ready'",
                "    id = :id\n    AND :version = :version\n    AND state = 'ready'",
            )
        ],
    ),
    Mutant(
        "reserve takes what is held",
        [
            (
                WORKTREES,
                "    AND (lease_expires_at IS NULL OR lease_expires_at <= :now OR",
                "    AND (lease_expires_at IS NULL OR lease_expires_at > :now OR",
            )
        ],
    ),
    Mutant(
        "a renewal does not look at the token",
        [
            (
                WORKTREES,
                f"{RENEW_SET}    AND version = :version\n{HELD}",
                f"{RENEW_SET}    AND version = :version\n    AND lease_owner = :lease_owner\n"
                "    AND :lease_token = :lease_token\n",
            )
        ],
    ),
    Mutant(
        "a renewal does not look at the expiry",
        [
            (
                WORKTREES,
                f"{RENEW_SET}    AND version = :version\n{HELD}    AND lease_expires_at > :now\n",
                f"{RENEW_SET}    AND version = :version\n{HELD}    AND :now = :now\n",
            )
        ],
    ),
    Mutant(
        "a release does not look at the owner",
        [
            (
                WORKTREES,
                f"{RELEASE_SET}    AND lease_owner = :lease_owner\n",
                f"{RELEASE_SET}    AND :lease_owner = :lease_owner\n",
            )
        ],
    ),
    Mutant(
        "a release does not raise the fencing number",
        [(WORKTREES, RELEASE_SET, RELEASE_SET.replace("version + 1", "version"))],
    ),
    Mutant(
        "a take does not raise the fencing number",
        [(TAKES, "    version = version + 1,", "    version = version,")],
    ),
    Mutant(
        "a take does not look at the queue",
        [
            (
                TAKES,
                "        AND position < :position\n",
                "        AND position < :position AND position < 0\n",
            )
        ],
    ),
    Mutant(
        "the guard does not look at the version",
        [
            (
                WORKTREES,
                f"{GUARD}    AND version = :version\n{HELD}",
                f"{GUARD}    AND :version = :version\n    AND lease_owner = :lease_owner\n"
                "    AND :lease_token = :lease_token\n",
            )
        ],
    ),
    Mutant(
        "the guard does not look at the expiry",
        [
            (
                WORKTREES,
                f"{GUARD}    AND version = :version\n{HELD}    AND lease_expires_at > :now\n",
                f"{GUARD}    AND version = :version\n{HELD}    AND :now = :now\n",
            )
        ],
    ),
    Mutant(
        "the guard is not asked when the transaction commits",
        [
            (TRANSACTION, "            held = all(operation.answers)", "            held = True"),
            (TRANSACTION, "if self._guard is not None and not answers[-1]:", "if False:"),
        ],
    ),
    Mutant(
        "a lock that runs is taken over",
        [
            (
                LOCKS,
                "project_locks.expires_at <= excluded.acquired_at",
                "project_locks.expires_at >= excluded.acquired_at",
            )
        ],
    ),
    Mutant(
        "callers are answered before COMMIT",
        [
            (
                LANES,
                '            self.check_files()\n            connection.execute("COMMIT")\n'
                "        except BaseException as error:",
                "            self._call_on_loop(partial(_settle_all, batch))\n"
                '            connection.execute("COMMIT")\n        except BaseException as error:',
            )
        ],
    ),
    Mutant(
        "a batch goes on when its transaction is gone",
        [
            (
                LANES,
                "                if not connection.in_transaction:\n"
                "                    raise BatchLostError from operation.error\n",
                "",
            )
        ],
    ),
    Mutant(
        "a budget does not count what is promised to others",
        [
            (
                "sql/budget_reservations.sqlite.sql",
                "r.request_id <> :request_id\n    ) + j.cost",
                "r.request_id = :request_id\n    ) + j.cost",
            )
        ],
    ),
]


UNCHANGED = Mutant("nothing was changed", [])


def run(mutant: Mutant, folder: Path) -> str:
    """Plant the fault in a fresh copy and search for it; return which seed finds it."""
    original, copy = folder / "original", folder / "copy"
    if not original.exists():
        # Once: what is edited meanwhile must not get into the search.
        for name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, original / name, ignore=ignored)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original, copy)
    for name, old, new in mutant.edits:
        file = copy / name
        text = file.read_text()
        if old not in text:
            return f"its place in {name} is gone"
        file.write_text(text.replace(old, new, 1))
    try:
        search = subprocess.run(
            [sys.executable, "-c", SEARCH],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no end"
    return search.stdout.strip() or f"the simulation broke: {search.stderr.strip()[-200:]}"


def main(part: str = "") -> int:
    """Try every mutant whose name has `part` in it; return how many were not found."""
    escaped = 0
    with tempfile.TemporaryDirectory(prefix="metastore-mutants-") as folder:
        outcome = run(UNCHANGED, Path(folder))
        sys.stdout.write(f"{UNCHANGED.fault:55} {outcome}\n")
        sys.stdout.flush()
        if outcome != HOLDS:
            return 1
        for mutant in MUTANTS:
            if part not in mutant.fault:
                continue
            outcome = run(mutant, Path(folder))
            escaped += not outcome.startswith(FOUND)
            sys.stdout.write(f"{mutant.fault:55} {outcome}\n")
            sys.stdout.flush()
    return escaped


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
