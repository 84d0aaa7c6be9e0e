"""Health: every problem is provoked, not made up."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from metastore import MetadataStore, NewEvent, TransactionActive, health, migrations, urls
from metastore.backends.sqlite import backend, inspection
from metastore.backends.sqlite.known_faults import known_faults
from metastore.errors import InvalidValue
from metastore.repositories.tasks import Tasks
from metastore.testing import Clock, Factories, Faults, expire
from metastore.testing.template import write_template
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from metastore.health import Health

HEAD = migrations.head("sqlite")
MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file that `store_url` names."""
    return tmp_path / "metadata.db"


def outside(path: Path, *statements: str) -> None:
    """Change the file behind metastore's back, on a connection without its settings."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


async def diagnose(url: str, **searches: bool) -> Health:
    return await health.diagnose(urls.resolve(url), **searches)


def the_problem(report: Health) -> str:
    [problem] = report.problems
    assert not report.healthy
    return problem


# A database that is well


async def test_health__of_a_new_database(file_store: MetadataStore, store_url: str) -> None:
    report = await file_store.health(integrity=True, audit=True)
    assert report.healthy
    assert report.problems == []
    assert report.tampering == []
    assert report.url == store_url
    assert (report.reachable, report.writable) == (True, True)
    assert report.schema_revision == report.schema_head == HEAD
    none = health.LeaseCount(0, 0)
    assert report.leases == {"worktrees": none, "projects": none, "tasks": none}
    assert report.software == f"SQLite {sqlite3.sqlite_version}"
    assert (report.details["journal_mode"], report.details["synchronous"]) == ("wal", "full")
    assert report.damage == []
    assert len(report.notes) == len(report.known_faults)


async def test_health__says_what_the_file_system_says(
    file_store: MetadataStore, path: Path
) -> None:
    await Factories(file_store).session()
    report = await file_store.health()
    assert report.damage is None
    assert report.database_bytes == path.stat().st_size
    assert report.details["wal_bytes"] == path.with_name("metadata.db-wal").stat().st_size > 0
    assert report.details["file_modes"] == {
        f"{path}{suffix}": "0600" for suffix in ("", "-wal", "-shm")
    }


async def test_health__says_how_much_of_the_disk_is_free(
    file_store: MetadataStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def disk_usage(folder: Path) -> Any:
        asked.append(folder)
        # As it was: others write to the disk between two looks.
        return usage

    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert (await file_store.health()).details["free_disk_bytes"] == usage.free
    assert asked == [path.parent]


async def test_health__changes_nothing(file_store: MetadataStore, path: Path) -> None:
    def state() -> list[tuple[int, int]]:
        # By name: nothing may open these files beside the driver.
        files = [path, path.with_name("metadata.db-wal")]
        return [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    await Factories(file_store).session()
    raw = file_store._backend._writer.connection.raw  # type: ignore[attr-defined]
    before = raw.total_changes, state()
    assert (await file_store.health(integrity=True)).healthy
    assert (raw.total_changes, state()) == before
    assert raw.execute("PRAGMA busy_timeout").fetchone() == (10_000,)


async def test_health__leaves_no_thread_and_no_descriptor(store_url: str) -> None:
    def open_things() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    # asyncio starts another thread when the last one is not idle yet.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with MetadataStore.open(store_url) as store:
        await store.health(integrity=True)
    before = open_things()
    async with MetadataStore.open(store_url) as store:
        for after in range(20):
            await store.health(integrity=True)
            await Faults(store).cancelled(store.health(integrity=True), after=after)
        assert (await store.health()).healthy
    # SQLite keeps the descriptors of closed connections for as long as the file is locked.
    async with asyncio.timeout(PATIENCE):
        while open_things() != before:
            await asyncio.sleep(0.01)


async def test_health__beside_writers(store: MetadataStore, factories: Factories) -> None:
    reports, _ = await asyncio.gather(
        asyncio.gather(*(store.health() for _ in range(10))),
        asyncio.gather(*(factories.repository() for _ in range(200))),
    )
    assert [report.problems for report in reports] == [[]] * 10


async def test_diagnose__is_what_an_open_store_says(
    store_url: str, file_store: MetadataStore
) -> None:
    def facts(report: Health) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.structs.asdict(report)
        del found["checked_at"], found["details"]["free_disk_bytes"]
        return found

    assert facts(await diagnose(store_url)) == facts(await file_store.health())


async def test_diagnose__not_in_memory() -> None:
    with pytest.raises(InvalidValue):
        await diagnose("sqlite://")


# Leases


async def test_leases__are_counted_and_expired_ones_noted(
    store: MetadataStore, factories: Factories, clock: Clock
) -> None:
    await factories.worktree()
    leases = [await factories.lease() for _ in range(3)]
    locks = [await factories.lock() for _ in range(4)]
    claims = [await factories.claim() for _ in range(5)]
    await expire(store, leases[0])
    for claim in claims[:3]:
        await expire(store, claim)
    for lock in locks[:2]:
        await expire(store, lock)
    report = await store.health()
    assert report.leases == {
        "worktrees": health.LeaseCount(2, 1),
        "projects": health.LeaseCount(2, 2),
        "tasks": health.LeaseCount(2, 3),
    }
    assert report.healthy
    notes = [note for note in report.notes if "expired without" in note]
    assert [note.partition(":")[0] for note in notes] == [
        "1 of the leased worktrees",
        "2 of the leased projects",
        "3 of the leased tasks",
    ]
    # One that no honest clock has written counts as expired.
    clock.advance(-timedelta(days=30))
    report = await store.health()
    assert report.leases is not None
    assert report.leases["worktrees"] == health.LeaseCount(0, 3)
    assert report.leases["tasks"] == health.LeaseCount(0, 5)


# Problems


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_modes__of_a_file_that_others_may_read(
    file_store: MetadataStore, path: Path, suffix: str
) -> None:
    file = path.with_name(f"metadata.db{suffix}")
    file.chmod(0o644)
    report = await file_store.health()
    assert report.details["file_modes"][str(file)] == "0644"
    assert the_problem(report).endswith(f"Run: chmod 600 '{file}'.")
    file.chmod(0o600)
    assert (await file_store.health()).healthy


async def test_schema__older_than_the_code(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    migrations.upgrade(urls.resolve(url), "3")
    report = await diagnose(url)
    assert (report.reachable, report.writable) == (True, True)
    assert report.schema_revision == "0003-create-projects"
    assert report.leases is None
    assert f"metastore migrate upgrade --db {url}" in the_problem(report)
    migrations.upgrade(urls.resolve(url))
    assert (await diagnose(url)).healthy


async def test_schema__that_became_newer_than_the_code(
    file_store: MetadataStore, path: Path
) -> None:
    outside(path, "INSERT INTO _yoyo_migration (migration_id) VALUES ('9999-from-the-future')")
    report = await file_store.health()
    assert report.schema_revision == "9999-from-the-future"
    assert "install a newer metastore" in the_problem(report)


async def test_wal__grows_while_somebody_reads_an_old_state(
    file_store: MetadataStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "LARGE_WAL", 2 * MIB)
    session = await Factories(file_store).session()
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchall()
        for _ in range(3):
            await file_store.events.append_many(session.id, [NewEvent("log", "x" * MIB)])
        report = await file_store.health()
    assert report.details["wal_bytes"] is not None
    assert report.details["wal_bytes"] > 3 * MIB
    assert "sqlite3 shell" in the_problem(report)


async def test_disk__is_nearly_full(
    file_store: MetadataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "LOW_DISK", 1 << 62)
    problem = the_problem(await file_store.health())
    assert str(tmp_path) in problem
    assert problem.endswith("Free some space.")


@pytest.mark.parametrize("tree", ["repositories", "sqlite_autoindex_repositories_2"])
async def test_integrity__finds_a_damaged_page(store_url: str, path: Path, tree: str) -> None:
    async with MetadataStore.open(store_url) as store:
        for _ in range(5):
            await Factories(store).repository()
    with closing(sqlite3.connect(path)) as connection:
        [page_size] = connection.execute("PRAGMA page_size").fetchone()
        [page] = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = ?", (tree,)
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_size)
        file.write(os.urandom(page_size))
    assert (await diagnose(store_url)).damage is None
    report = await diagnose(store_url, integrity=True)
    assert report.damage
    assert report.damage[0] in the_problem(report)
    assert "restore a backup" in the_problem(report)


async def test_audit__of_a_damaged_history(store_url: str, path: Path) -> None:
    async with MetadataStore.open(store_url) as store:
        await Factories(store).event()
    with closing(sqlite3.connect(path)) as connection:
        [page_size] = connection.execute("PRAGMA page_size").fetchone()
        [page] = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'events'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_size)
        file.write(os.urandom(page_size))
    report = await diagnose(store_url, audit=True)
    assert report.tampering
    assert {finding.what for finding in report.tampering} == {"unreadable"}
    assert "History cannot be checked" in "\n".join(report.problems)


async def test_integrity__finds_rows_without_their_parent(
    file_store: MetadataStore, path: Path
) -> None:
    repository = await Factories(file_store).repository()
    for _ in range(2):
        await Factories(file_store).worktree(repository_id=repository.id)
    outside(path, "PRAGMA foreign_keys = OFF", "DELETE FROM repositories")
    report = await file_store.health(integrity=True)
    assert report.damage == ["2 rows of worktrees refer to missing rows of repositories"]
    assert report.damage[0] in the_problem(report)


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def _of_another_program(path: Path) -> None:
    path.unlink()
    outside(path, "CREATE TABLE t (x)")


def _truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(5000)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("ruin", "says"),
    [
        (lambda path: path.unlink(), "metastore migrate upgrade"),
        (lambda path: path.write_bytes(b""), "metastore migrate upgrade"),
        (_garbage, "not a database"),
        (_of_another_program, "another program"),
        (_truncated, "malformed"),
        (_a_folder, "not a file"),
    ],
    ids=["missing", "empty", "garbage", "foreign", "truncated", "folder"],
)
async def test_diagnose__a_file_that_cannot_be_opened(
    store_url: str, path: Path, ruin: Callable[[Path], object], says: str
) -> None:
    ruin(path)
    report = await diagnose(store_url, integrity=True)
    assert (report.reachable, report.writable, report.schema_revision) == (False, False, None)
    assert says in the_problem(report)


READ_ONLY = """
import asyncio, os, sys
import msgspec
from metastore import MetadataStore, health, urls

async def warm_up():
    async with MetadataStore.open("sqlite://") as store:
        await store.health()

asyncio.run(warm_up())
if os.geteuid() == 0:  # whom no mode keeps from writing
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
report = asyncio.run(health.diagnose(urls.resolve(sys.argv[1])))
print(msgspec.json.encode(report).decode())
"""


@pytest.mark.parametrize("folder_mode", [0o555, 0o777], ids=["folder too", "file only"])
def test_read_only__for_this_user(folder_mode: int) -> None:
    with tempfile.TemporaryDirectory() as top:
        # pytest's own folders let no other user in.
        Path(top).chmod(0o755)
        path = Path(top) / "data" / "metadata.db"
        write_template(path)
        path.chmod(0o444)
        path.parent.chmod(folder_mode)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, f"sqlite:///{path}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        path.parent.chmod(0o700)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert not report["writable"]
    assert any("mount options" in problem for problem in report["problems"])


async def test_busy__another_process_holds_the_lock(store: MetadataStore, faults: Faults) -> None:
    with faults.busy(wait=timedelta(seconds=2 * PATIENCE)):
        report = await asyncio.wait_for(store.health(), PATIENCE)
    assert (report.reachable, report.writable) == (True, False)
    # By SQLite's own answer: the writer is not left waiting for the lock.
    assert "database is locked" in the_problem(report)
    assert "keeps a transaction open" in the_problem(report)
    assert (await store.health()).healthy


async def test_busy__a_transaction_of_this_process_has_the_writer(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with store.transaction() as tx:
            await tx.repositories.create(name="a", remote_url="")
            opened.set()
            await done.wait()

    task = asyncio.create_task(hold())
    await opened.wait()
    for timeout in (0.05, 0.5, 5):
        with monkeypatch.context() as patched:
            patched.setattr(backend, "PROBE_TIMEOUT", timeout)
            report = await store.health()
        if report.reachable:
            break
        # The machine is so busy that a read took as long.
    assert (report.reachable, report.writable) == (True, False)
    assert "no connection free" in the_problem(report)
    done.set()
    await task
    assert (await store.health()).healthy
    assert len((await store.repositories.list()).items) == 1


async def test_health__not_inside_a_transaction(store: MetadataStore) -> None:
    async with store.transaction() as tx:
        await tx.repositories.list()
        with pytest.raises(TransactionActive):
            await store.health()


async def test_file__that_was_removed(file_store: MetadataStore, path: Path) -> None:
    path.unlink()
    report = await file_store.health()
    assert report.database_bytes is None
    assert "is gone" in the_problem(report)


async def test_closed__is_a_report_and_no_exception(file_store: MetadataStore) -> None:
    await file_store.close()
    report = await file_store.health(integrity=True)
    assert (report.reachable, report.writable, report.damage) == (False, False, None)
    assert all("the store is closed" in problem for problem in report.problems)


async def test_journal_mode__that_is_not_wal(
    file_store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite falls back to this on file systems that cannot share memory.
    read_settings = inspection.read_settings
    monkeypatch.setattr(
        inspection,
        "read_settings",
        lambda check, connection: read_settings(check, connection)._replace(journal_mode="delete"),
    )
    [problem] = (await file_store.health()).problems
    assert "local file system" in problem


async def test_durability__normal_is_noted(store_url: str) -> None:
    async with MetadataStore.open(store_url, durability="normal") as store:
        report = await store.health()
    assert report.details["synchronous"] == "normal"
    assert any("last commits may be lost" in note for note in report.notes)
    assert report.healthy


# The table of known faults


@pytest.mark.parametrize(
    ("release", "has_it"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_known_faults__wal_reset(release: tuple[int, int, int], has_it: bool) -> None:
    names = [fault.name for fault in known_faults(trusts_schema=False, release=release)]
    assert names == (["WAL-reset fault"] if has_it else [])


async def test_known_faults__json_is_told_where_the_schema_must_be_trusted(
    store: MetadataStore,
) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        try:
            connection.execute("CREATE TABLE t (d CHECK (json_valid(d)))")
        except sqlite3.OperationalError:
            unsafe = True
        else:
            unsafe = False
    faults = (await store.health()).known_faults
    assert any("json_valid" in fault.effect for fault in faults) == unsafe
    assert all(fault.source and fault.versions for fault in faults)


async def test_health__adds_the_costs_up(file_store: MetadataStore, path: Path) -> None:
    job = await Factories(file_store).job()
    await file_store.jobs.start(job.id)
    await file_store.cost_entries.record(
        job.id, request_id="1", provider="p", model="m", tokens_in=1, tokens_out=1, cost_usd="0.5"
    )
    assert (await file_store.health(integrity=True)).problems == []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE jobs SET cost_nano_usd = cost_nano_usd + 1")
    [problem] = (await file_store.health(integrity=True)).problems
    assert job.id in problem
    assert (await file_store.health()).healthy


ENDLESS = """
CREATE VIEW {} AS WITH RECURSIVE
n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT {} FROM n WHERE x < 0
"""


@pytest.mark.parametrize("searches", [{}, {"integrity": True}, {"audit": True}])
@pytest.mark.parametrize("table", ["worktrees", "tasks", "events", "cost_entries"])
async def test_diagnose__of_a_view_that_never_ends(
    store_url: str, path: Path, table: str, searches: dict[str, bool]
) -> None:
    """Somebody else's database may have one in the place of any table."""
    async with MetadataStore.open(store_url, migrate=True):
        pass
    with closing(sqlite3.connect(path)) as connection:
        columns = [it[1] for it in connection.execute(f"PRAGMA table_info({table})")]

    listed = ", ".join(f"x AS {column}" for column in columns)
    outside(path, f"DROP TABLE {table}", ENDLESS.format(table, listed))
    async with asyncio.timeout(20):
        report = await diagnose(store_url, **searches)
    assert not report.healthy
    assert f"{table}: is a view where a table belongs" in "".join(report.problems)
    found = [it for it in report.damage or () if it.startswith(table)]
    expected = [f"{table}: is a view where a table belongs"]
    assert found == (expected if "integrity" in searches else [])


async def test_diagnose__of_what_cannot_be_counted_in_time(
    file_store: MetadataStore, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(*_: object) -> object:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(health, "COUNT_TIMEOUT", 0.1)
    monkeypatch.setattr(Tasks, "count_held", endless)
    async with asyncio.timeout(20):
        report = await diagnose(store_url)
    assert "cannot be counted: that took more than 0.1 s" in the_problem(report)
