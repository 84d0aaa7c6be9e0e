"""Faults in a shared commit: what each caller was told is what is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    MetadataStore,
    MetastoreError,
    NewEvent,
    Session,
    StoreFull,
)
from metastore.codec import new_id
from metastore.statements import Call
from metastore.testing import Factories, Faults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

BATCH = 8


class Bed:
    """A store, what was asked of it, and what each caller was told."""

    def __init__(self, store: MetadataStore, path: Path, session: Session) -> None:
        self.store = store
        self.path = path
        self.session = session
        self.told: dict[str, BaseException | None] = {}

    async def ask(self, *asks: tuple[str, Awaitable[object]]) -> list[BaseException | None]:
        """Ask all at once, so that they share a commit, and note what each was told."""
        answers = await asyncio.gather(*(work for _, work in asks), return_exceptions=True)
        errors = [it if isinstance(it, BaseException) else None for it in answers]
        self.told |= dict(zip((id_ for id_, _ in asks), errors, strict=True))
        # What the encoders let through the driver can bind: its refusal is a fault of the program.
        known = (type(None), MetastoreError, sqlite3.ProgrammingError)
        assert all(isinstance(error, known) for error in errors), errors
        return errors

    def append(self, message: str = "m") -> tuple[str, Awaitable[object]]:
        """Return a good write of one row, and the row's id."""
        id_ = new_id()
        return id_, self.store.events.append(self.session.id, "t", message, id=id_)

    def check(self) -> Counter[str]:
        """Compare what was told with what is on disk, as another connection sees it."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            stored = {id_ for (id_,) in connection.execute("SELECT id FROM events")}
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        acknowledged = {id_ for id_, error in self.told.items() if error is None}
        assert stored == acknowledged
        return Counter(type(error).__name__ for error in self.told.values())


@pytest.fixture
async def bed(file_store: MetadataStore, store_url: str, tmp_path: Path) -> Bed:
    session = await Factories(file_store).session()
    return Bed(file_store, tmp_path / "metadata.db", session)


def _unique(bed: Bed) -> tuple[str, Awaitable[object]]:
    # The first good row of the batch before has this id.
    taken = next(iter(bed.told))
    return "unique", bed.store.events.append(bed.session.id, "t", "again", id=taken)


def _foreign_key(bed: Bed) -> tuple[str, Awaitable[object]]:
    return "foreign key", bed.store.events.append(new_id(), "t", "of nothing")


def _check(bed: Bed) -> tuple[str, Awaitable[object]]:
    return "check", _raw(bed, "argv", "[]")


def _bind(bed: Bed) -> tuple[str, Awaitable[object]]:
    return "bind", _raw(bed, "argv", object())


def _refused_early(bed: Bed) -> tuple[str, Awaitable[object]]:
    return "early", bed.store.events.append(bed.session.id, "t", "a\0")


def _many(bed: Bed) -> tuple[str, Awaitable[object]]:
    rows = [NewEvent("t", "m"), NewEvent("t", "m"), NewEvent("t", "m", id=next(iter(bed.told)))]
    return "many", bed.store.events.append_many(bed.session.id, rows)


def _raw(bed: Bed, column: str, value: object) -> Awaitable[object]:
    """Write a command past the encoders, which refuse such a value before it is queued."""
    commands = bed.store.commands
    call = commands._sql.create_command(
        id=new_id(), session_id=bed.session.id, argv=["a"], working_directory="/", log_path=None,
        created_at=bed.session.created_at,
    )  # fmt: skip
    parameters = list((call.rows[0] | {column: value}).values())
    return commands._run(Call(call.statement, tuple(parameters)))


FAULTS: dict[Callable[[Bed], tuple[str, Awaitable[object]]], type[BaseException]] = {
    _unique: AlreadyExists,
    _foreign_key: InvalidReference,
    _check: InvalidValue,
    _bind: sqlite3.ProgrammingError,
    _refused_early: InvalidValue,
    _many: AlreadyExists,
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
async def test_batch__a_fault_at_each_position_fails_its_caller_only(
    bed: Bed, fault: Callable[[Bed], tuple[str, Awaitable[object]]]
) -> None:
    await bed.ask(*(bed.append() for _ in range(BATCH)))
    for position in range(BATCH):
        asks = [bed.append() for _ in range(BATCH - 1)]
        asks.insert(position, fault(bed))
        errors = await bed.ask(*asks)
        assert isinstance(errors.pop(position), FAULTS[fault])
        assert errors == [None] * (BATCH - 1)
        del bed.told[asks[position][0]]
        bed.check()


@pytest.mark.parametrize(
    "batches",
    [pytest.param(40, id="short"), pytest.param(1_500, id="torture", marks=pytest.mark.torture)],
)
async def test_batch__mixed_faults_and_failing_commits(
    bed: Bed, record_property: Callable[[str, object], None], batches: int
) -> None:
    dice = random.Random(3)
    faults = Faults(bed.store)
    totals: Counter[str] = Counter()
    await bed.ask(bed.append())
    kinds = [kind for kind in FAULTS if kind is not _bind]
    for n in range(batches):
        asks = [bed.append("x" * dice.choice([1, 3_000])) for _ in range(dice.randrange(1, 12))]
        planted = [dice.choice(kinds)(bed) for _ in range(dice.randrange(3))]
        mixed = [*asks, *planted]
        dice.shuffle(mixed)
        with contextlib.ExitStack() as stack:
            match dice.randrange(4):
                case 0:
                    stack.enter_context(faults.lost_commit(times=dice.choice([1, 2, 3])))
                case 1:
                    stack.enter_context(faults.lost_commit())
                case 2:
                    stack.enter_context(faults.full())
            errors = await bed.ask(*mixed)
        totals.update(type(error).__name__ for error in errors)
        for id_, _ in planted:
            bed.told.pop(id_, None)
        if n % 20 == 0 or n == batches - 1:
            bed.check()
    assert await bed.ask(bed.append()) == [None]
    bed.check()
    record_property("figures", f"{batches} batches, told: {dict(totals)}")
    assert totals["StoreFull"] > batches / 4
    assert totals["NoneType"] > batches


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(3, id="short"), pytest.param(60, id="torture", marks=pytest.mark.torture)],
)
async def test_full__by_page_count(
    bed: Bed, record_property: Callable[[str, object], None], rounds: int
) -> None:
    raw = bed.store._backend._writer.connection.raw  # type: ignore[attr-defined]
    dice = random.Random(1)
    for _ in range(rounds):
        [pages] = raw.execute("PRAGMA page_count").fetchone()
        raw.execute(f"PRAGMA max_page_count = {pages + 12}")
        full = 0
        while full < 6:
            asks = [bed.append("x" * dice.choice([10, 4_000, 40_000])) for _ in range(BATCH)]
            full += sum(isinstance(error, StoreFull) for error in await bed.ask(*asks))
        bed.check()
        async with _full_transaction(bed):
            pass
        raw.execute("PRAGMA max_page_count = 1000000")
        assert await bed.ask(bed.append("x" * 40_000)) == [None]
    record_property("figures", f"{rounds} times full, told: {dict(bed.check())}")


@contextlib.asynccontextmanager
async def _full_transaction(bed: Bed) -> Any:
    """Fill a transaction until it is refused: nothing of it may be there."""
    with pytest.raises(StoreFull):
        async with bed.store.transaction() as tx:
            for _ in range(100):
                await tx.events.append(bed.session.id, "lost", "x" * 40_000)
    bed.check()
    yield


LEDGER = textwrap.dedent(
    """
    import asyncio, json, os, resource, sys
    from metastore import MetadataStore, StoreFull
    from metastore.codec import new_id

    async def main(path, limit):
        told, kinds = {}, {"full": 0}
        async with MetadataStore.open(f"sqlite:///{path}") as store:
            [session] = (await store.sessions.list_recent()).items

            async def append(size):
                id_ = new_id()
                try:
                    await store.events.append(session.id, "t", "x" * size, id=id_)
                    told[id_] = True
                except StoreFull:
                    told[id_] = False
                    kinds["full"] += 1

            if limit:
                size = max(os.path.getsize(path), os.path.getsize(path + "-wal")) + limit
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            batches = 0
            while kinds["full"] < 20 and batches < 2_000:
                batches += 1
                await asyncio.gather(*(append(size) for size in (10, 5_000, 60_000, 10, 200)))
            refused = kinds["full"]
            if limit:
                unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            else:
                os.unlink(os.path.join(os.path.dirname(path), "ballast"))
            for size in (10, 5_000, 60_000):
                await append(size)
            print(json.dumps([told, refused, kinds["full"] - refused]))

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    """
)


def _prepare(path: Path) -> None:
    async def prepare() -> None:
        async with MetadataStore.open(f"sqlite:///{path}", migrate=True) as store:
            await Factories(store).session()

    asyncio.run(prepare())


def _run_ledger(path: Path, limit: int) -> str:
    """Fill a store until it is full, make room, write on; compare what was told with the file."""
    done = subprocess.run(
        [sys.executable, "-c", LEDGER, str(path), str(limit)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told, refused, refused_after = json.loads(done.stdout)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        stored = {id_ for (id_,) in connection.execute("SELECT id FROM events")}
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert stored == {id_ for id_, acknowledged in told.items() if acknowledged}
    assert refused >= 20
    assert refused_after == 0, "there was space again"
    return f"{len(stored)} of {len(told)} acknowledged and stored, {refused} refused"


@pytest.mark.parametrize("limit", [30_000, 300_000])
def test_full__by_the_limit_of_a_file(
    tmp_path: Path, record_property: Callable[[str, object], None], limit: int
) -> None:
    _prepare(tmp_path / "metadata.db")
    record_property("figures", _run_ledger(tmp_path / "metadata.db", limit))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, a third of it taken by a file that can be deleted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk takes the right to mount")
    try:
        (folder / "ballast").write_bytes(bytes(1 << 20))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full__by_a_small_disk(
    small_disk: Path, record_property: Callable[[str, object], None]
) -> None:
    _prepare(small_disk / "metadata.db")
    record_property("figures", _run_ledger(small_disk / "metadata.db", 0))
