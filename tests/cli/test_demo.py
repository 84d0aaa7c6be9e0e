"""`metastore demo` on a real repository, and the example runner that it is built on."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from docs.examples import runner as example_runner
from metastore import MetadataStore
from metastore.cli import main
from metastore.demo import check
from metastore.demo.competition import LATE_WRITES
from metastore.demo.display import LiveTable, printable
from metastore.demo.ledger import Entry, Ledger
from metastore.demo.orchestration import Demo, Outcome
from metastore.demo.verification import RUN, Tally, verify
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parents[2]

COMMITS = 5

COMMAND = [
    "sh",
    "-c",
    "git log -1 --format=%s; cat count; echo '<testsuites/>' > \"$ARTIFACTS/junit.xml\"; sleep 0.2",
]

AUTHOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "a", "EMAIL": "a@example.com"}.items()
}


def git(*arguments: str | Path, cwd: Path) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        env=os.environ | AUTHOR,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout


def make_repository(top: Path) -> None:
    top.mkdir()
    git("init", "--quiet", "--initial-branch=main", cwd=top)
    for number in range(COMMITS):
        (top / "count").write_text(f"{number}\n")
        git("add", "count", cwd=top)
        git("commit", "--quiet", f"--message=change {number}", cwd=top)


class Run(NamedTuple):
    """A run of the demo.

    Attributes:
        snapshot: a copy of the database as the run left it.
    """

    database: Path
    snapshot: Path
    repository: Path
    result: subprocess.CompletedProcess[str]

    def select(self, query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.snapshot)) as connection:
            return connection.execute(query).fetchall()

    @property
    def folder(self) -> Path:
        return Path(self.result.stdout.splitlines()[-1].removeprefix("Logs and reports: "))


def demo_command(folder: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "metastore", "demo", "--repo", f"{folder}/repository"]
    return [*command, "--db", f"sqlite:///{folder}/metadata.db", *arguments]


def run_demo(folder: Path, *arguments: str) -> Run:
    database, snapshot = folder / "metadata.db", folder / f"after{'-'.join(arguments)}.db"
    result = subprocess.run(
        demo_command(folder, *arguments, "--", *COMMAND),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    copy_database(database, snapshot)
    return Run(database, snapshot, folder / "repository", result)


def copy_database(path: Path, to: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(path)) as original,
        contextlib.closing(sqlite3.connect(to)) as copy,
    ):
        original.backup(copy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_repository(folder / "repository")
    return folder


@pytest.fixture(scope="module")
def first_run(folder: Path) -> Run:
    return run_demo(folder)


@contextlib.contextmanager
def demo_at(folder: Path, moment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a demo whose commands take long, and let it run until it prints `moment`."""
    with subprocess.Popen(
        demo_command(folder, "--", "sleep", "15"),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Whoever runs the tests may ignore it, and what it starts would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert any(moment in line for line in process.stdout)
        yield process
        process.kill()


@pytest.fixture(scope="module")
def second_run(folder: Path, first_run: Run) -> tuple[Run, dict[str, Any]]:
    """Return a run after one that was killed, and what it printed."""
    assert first_run.result.returncode == 0
    with demo_at(folder, "leased"):
        pass
    assert git("worktree", "list", cwd=folder / "repository").count("\n") == 4
    run = run_demo(folder, "--json")
    assert run.result.returncode == 0, run.result.stderr
    return run, msgspec.json.decode(run.result.stdout)


def test_demo__succeeds_and_says_what_happened(first_run: Run) -> None:
    result = first_run.result
    assert (result.returncode, result.stderr) == (0, "")
    assert "KILLED in the middle of its command" in result.stdout
    assert "take-overs    1\n" in result.stdout
    assert f"stale writes  {LATE_WRITES} refused\n" in result.stdout
    assert "Every reported row is in the database" in result.stdout


def test_demo__leaves_the_worktrees_of_the_repository_as_they_were(first_run: Run) -> None:
    assert git("worktree", "list", cwd=first_run.repository).count("\n") == 1
    assert git("status", "--porcelain", cwd=first_run.repository) == ""
    worktrees = first_run.select("SELECT path, state, lease_owner FROM worktrees")
    assert {row[1:] for row in worktrees} == {("retired", None)}
    assert not any(Path(path).parent.exists() for path, *_ in worktrees)


def test_demo__leaves_what_happened_in_the_database(first_run: Run) -> None:
    statuses = dict(first_run.select("SELECT status, count(*) FROM sessions GROUP BY 1"))
    assert set(statuses) == {"completed", "failed"}
    assert statuses["failed"] == 1
    assert statuses["completed"] >= 8
    commands = first_run.select(
        "SELECT s.status, c.status, c.exit_code FROM commands AS c "
        "INNER JOIN sessions AS s ON s.id = c.session_id"
    )
    assert set(commands) == {("completed", "completed", 0), ("failed", "failed", None)}
    assert len(commands) == sum(statuses.values())
    [(killed,)] = first_run.select("SELECT error_message FROM sessions WHERE status = 'failed'")
    assert killed.startswith("its runner is gone, runner-")
    assert first_run.select("SELECT * FROM active_leases") == []


def test_demo__runs_each_command_at_its_commit_and_keeps_what_it_printed(first_run: Run) -> None:
    subjects = dict(
        line.split(" ", 1)
        for line in git("log", "--format=%H %s", cwd=first_run.repository).splitlines()
    )
    sessions = first_run.select(
        "SELECT id, config ->> 'commit' FROM sessions WHERE status = 'completed'"
    )
    assert {commit for _, commit in sessions} == set(list(subjects)[:4])
    for session_id, commit in sessions:
        expected = [subjects[commit], subjects[commit].removeprefix("change ")]
        messages = first_run.select(
            f"SELECT message FROM events WHERE session_id = '{session_id}' ORDER BY position"
        )
        assert [message for (message,) in messages] == expected
        artifacts = first_run.select(
            "SELECT artifact_type, content_path, size_bytes FROM artifacts "
            f"WHERE session_id = '{session_id}' ORDER BY name"
        )
        assert [kind for kind, *_ in artifacts] == ["junit_xml", "log"]
        assert [Path(path).stat().st_size for _, path, _ in artifacts] == [
            size for *_, size in artifacts
        ]
        assert Path(artifacts[1][1]).read_text().splitlines() == expected


def test_demo__gives_the_worktree_of_the_killed_to_another(
    second_run: tuple[Run, dict[str, Any]],
) -> None:
    _, outcome = second_run
    assert outcome["killed"] == "doomed.1"
    assert outcome["taken_over_by"].startswith("runner-")
    assert outcome["taken_over_as"] == outcome["killed_as"] + 1
    assert outcome["take_overs"] >= 1
    assert set(outcome["refused"].values()) == {"LeaseLost"}
    assert len(outcome["refused"]) == LATE_WRITES
    assert outcome["leases"] == sum(outcome["tally"]["sessions"].values())


def test_demo__runs_again_on_the_same_database(second_run: tuple[Run, dict[str, Any]]) -> None:
    run, outcome = second_run
    assert outcome["problems"] == []
    assert run.select("SELECT count(*) FROM repositories") == [(1,)]
    runs = dict(run.select(f"SELECT metadata ->> '{RUN}', count(*) FROM sessions GROUP BY 1"))
    assert runs[outcome["run"]] == outcome["leases"]
    assert len(runs) >= 2


def test_demo__clears_up_behind_a_run_that_was_killed(
    second_run: tuple[Run, dict[str, Any]],
) -> None:
    run, _ = second_run
    assert "Removing 3 worktrees that an earlier run has left" in run.result.stderr
    assert git("worktree", "list", cwd=run.repository).count("\n") == 1
    assert run.select("SELECT id FROM sessions WHERE status = 'in_progress'") == []
    assert run.select("SELECT id FROM worktrees WHERE state = 'ready'") == []


def test_demo__prints_queries_that_work(first_run: Run) -> None:
    lines = [line for line in first_run.result.stdout.splitlines() if "sqlite3 -header" in line]
    assert len(lines) == 4
    for line in lines:
        assert f" {first_run.database} " in line
        rows = first_run.select(line.split('"')[1])
        assert rows or "active_leases" in line


@pytest.fixture
def ledger(first_run: Run, tmp_path: Path) -> Ledger:
    """Return what the first run claims."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for line in (first_run.folder / "ledger.jsonl").read_bytes().splitlines():
        ledger.add(msgspec.json.decode(line, type=Entry))
    return ledger


async def problems(run: Run, ledger: Ledger, tmp_path: Path, *statements: str) -> list[str]:
    """Return what is found wrong after the database was tampered with."""
    path = tmp_path / "metadata.db"
    copy_database(run.database, path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount, statement
    async with MetadataStore.open(f"sqlite:///{path}") as store:
        return (await verify(store, run.folder.name, ledger)).problems


async def test_verify__finds_everything_in_an_honest_run(
    first_run: Run, ledger: Ledger, tmp_path: Path
) -> None:
    assert await problems(first_run, ledger, tmp_path) == []


@pytest.mark.parametrize(
    ("table", "statement", "problem"),
    [
        ("sessions", "DELETE FROM sessions WHERE id = '{id}'", "session {id} is not in the"),
        (
            "sessions",
            "UPDATE sessions SET status = 'paused' WHERE id = '{id}'",
            "session {id} is paused, not ",
        ),
        ("commands", "DELETE FROM commands WHERE id = '{id}'", "command {id} is not in the"),
        (
            "commands",
            "UPDATE commands SET exit_code = 7, status = 'failed' WHERE id = '{id}'",
            "command {id} is not as it was left",
        ),
        ("artifacts", "DELETE FROM artifacts WHERE id = '{id}'", "artifact {id} "),
        (
            "artifacts",
            "UPDATE artifacts SET sha256 = '{zeros}' WHERE id = '{id}'",
            "artifact {id}: ",
        ),
    ],
)
async def test_verify__names_a_row_that_is_missing_or_different(
    first_run: Run, ledger: Ledger, tmp_path: Path, table: str, statement: str, problem: str
) -> None:
    claimed = {
        "sessions": list(ledger.sessions),
        "commands": [row.id for row in ledger.commands.values() if row.completed_at is not None],
        "artifacts": list(ledger.artifacts),
    }
    row_id = claimed[table][0]
    found = await problems(first_run, ledger, tmp_path, statement.format(id=row_id, zeros="0" * 64))
    assert any(text.startswith(problem.format(id=row_id)) for text in found), found


async def test_verify__names_the_session_that_lacks_an_event(
    first_run: Run, ledger: Ledger, tmp_path: Path
) -> None:
    session_id, [event_id, *_] = next(iter(ledger.events.items()))
    found = await problems(
        first_run,
        ledger,
        tmp_path,
        "DROP TRIGGER events_no_delete",
        f"DELETE FROM events WHERE id = '{event_id}'",
    )
    assert found == [f"1 events of session {session_id} are not in the database"]


async def test_verify__names_two_holders_of_a_worktree(
    first_run: Run, ledger: Ledger, tmp_path: Path
) -> None:
    [(earlier, later), *_] = ledger.successions()
    later.since = earlier.since
    found = await problems(first_run, ledger, tmp_path)
    assert found == [
        f"worktree {later.lease.worktree_id} had two holders: {earlier.worker} and {later.worker}"
    ]


async def test_verify__names_a_refused_write_that_was_stored(
    first_run: Run, ledger: Ledger, tmp_path: Path
) -> None:
    [[event_id, *_], *_] = ledger.events.values()
    ledger.refused.append(msgspec.structs.replace(ledger.refused[0], event_ids=[event_id]))
    found = await problems(first_run, ledger, tmp_path)
    assert found == [f"event {event_id} was refused and is in the database"]


def test_demo__exits_with_a_code_when_a_claim_is_not_in_the_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run(_: Demo) -> Outcome:
        return Outcome(
            run="run",
            repository="/repository",
            database="/metadata.db",
            folder="/run",
            commits=1,
            worktrees=1,
            processes=1,
            workers=2,
            tally=Tally(),
            problems=["session 1 is not in the database"],
        )

    monkeypatch.setattr(Demo, "run", run)
    result = CliRunner().invoke(main, ["demo", "--db", f"sqlite:///{tmp_path}/metadata.db"])
    assert result.exit_code == 1
    assert result.stderr == "metastore: error: session 1 is not in the database\n"
    assert "Every reported row" not in result.stdout


@pytest.mark.parametrize(
    ("ending", "moment"), [(signal.SIGINT, "KILLED"), (signal.SIGTERM, "Making")]
)
def test_demo__cleans_up_when_it_is_interrupted(
    tmp_path: Path, ending: signal.Signals, moment: str
) -> None:
    make_repository(tmp_path / "repository")
    with demo_at(tmp_path, moment) as process:
        process.send_signal(ending)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert git("worktree", "list", cwd=tmp_path / "repository").count("\n") == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.db")) as connection:
        statuses = connection.execute("SELECT DISTINCT status FROM sessions").fetchall()
        worktrees = connection.execute("SELECT DISTINCT state FROM worktrees").fetchall()
    assert ("in_progress",) not in statuses
    assert ("ready",) not in worktrees


async def test_checkouts__removes_one_that_git_was_interrupted_in_making(
    store: MetadataStore, tmp_path: Path
) -> None:
    top = tmp_path / "repository"
    make_repository(top)
    repository = await store.repositories.create(name="r", remote_url="")
    async with example_runner.checkouts(store, repository.id, top, ["HEAD"]) as [worktree]:
        # As git leaves it when it is killed early.
        git("worktree", "lock", worktree.path, cwd=top)
        (Path(worktree.path) / ".git").unlink()
    assert git("worktree", "list", cwd=top).count("\n") == 1
    assert not Path(worktree.path).parent.exists()


def test_demo__refuses_what_it_cannot_run_on(tmp_path: Path) -> None:
    empty = tmp_path / "repository"
    empty.mkdir()
    url = f"sqlite:///{tmp_path}/metadata.db"

    def refusal(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["demo", "--repo", str(empty), *arguments])
        assert result.exit_code != 0
        return result.stderr

    assert "not a git repository" in refusal("--db", url)
    git("init", "--quiet", cwd=empty)
    assert "has no commits yet" in refusal("--db", url)
    assert "need a database in a file" in refusal("--db", "sqlite://")
    assert "more workers than worktrees" in refusal("--db", url, "--worktrees", "8")
    assert not (tmp_path / "metadata.db").exists()


def test_live_table__shows_workers_and_news(first_run: Run) -> None:
    table = LiveTable()
    console = Console(file=io.StringIO(), width=120)
    frames = []
    for line in (first_run.folder / "ledger.jsonl").read_bytes().splitlines():
        table.show(msgspec.json.decode(line, type=Entry))
        with console.capture() as capture:
            console.print(table._render())
        frames.append(capture.get())
    lines = [frame.splitlines() for frame in frames]
    assert any("doomed.1     dead" in line for frame in lines for line in frame)
    waits = [line for frame in lines for line in frame if line.startswith("runner-2.4   waits")]
    assert waits
    assert "a release is refused with LeaseLost" in frames[-1]


def test_printable__leaves_nothing_for_a_terminal_to_obey() -> None:
    assert printable("a\x1b[2Jb\r\n\u202ec\u00e9") == "a [2Jb   c\u00e9"


def run_check(folder: Path) -> tuple[int, str]:
    artifacts = folder.parent / "artifacts"
    artifacts.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-P", check.__file__],
        cwd=folder,
        env=os.environ | {"ARTIFACTS": str(artifacts)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return result.returncode, result.stdout


def test_check__describes_a_commit_without_tests(tmp_path: Path) -> None:
    make_repository(tmp_path / "repository")
    code, output = run_check(tmp_path / "repository")
    assert code == 0
    assert "no tests at this commit\n1 files, 5 commits\n" in output
    assert output.endswith(" change 0\n")


def test_check__compiles_and_tests(tmp_path: Path) -> None:
    top = tmp_path / "repository"
    make_repository(top)
    (top / "code.py").write_text("ANSWER = 42\n")
    (top / "test_code.py").write_text("import code\n\ndef test_it():\n    assert code.ANSWER\n")
    git("add", ".", cwd=top)
    code, output = run_check(top)
    assert code == 0, output
    assert "2 of 2 modules compiled, 0 broken\n" in output
    assert 'tests="1"' in (tmp_path / "artifacts/junit.xml").read_text()
    (top / "code.py").write_text("ANSWER = \n")
    (top / "test_code.py").unlink()
    code, output = run_check(top)
    assert code == 1
    assert "broken code.py" in output


def test_runner__runs_a_command_at_recent_commits(tmp_path: Path) -> None:
    make_repository(tmp_path / "repository")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        arguments = ["--repo", "repository", "--db", "sqlite:///runs.db", "--commits", "3"]
        return subprocess.run(
            [sys.executable, CHECKOUT / "docs/examples/runner.py", *arguments, "--", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    result = run("sh", "-c", "cat count; cp count $ARTIFACTS/count.xml")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count(" completed ") == 3
    with contextlib.closing(sqlite3.connect(tmp_path / "runs.db")) as connection:
        messages = connection.execute("SELECT message FROM events ORDER BY message").fetchall()
        files = connection.execute(
            "SELECT content_path, size_bytes FROM artifacts WHERE artifact_type = 'junit_xml'"
        ).fetchall()
    assert messages == [("2",), ("3",), ("4",)]
    assert (
        [Path(path).stat().st_size for path, _ in files] == [size for _, size in files] == [2] * 3
    )
    assert git("worktree", "list", cwd=tmp_path / "repository").count("\n") == 1
    failed = run("sh", "-c", "exit 3")
    assert failed.returncode == 1
    assert failed.stdout.count(" failed code 3") == 3
