"""What nobody foresaw, raised in a connection's thread, reaches its callers and no one else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from metastore import StoreFailed
from metastore.backends.sqlite import lanes
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.url import of_file
from tests.backends.conftest import add_parent, list_parents
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRORS: list[BaseException] = [
    MemoryError(),
    FileNotFoundError(2, "the working directory is gone"),
    KeyboardInterrupt(),
    StopIteration(),
]


def once(error: BaseException, works: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises `error` when it is first called, and works from then on."""
    left = [error]

    def raise_or_work(*args: Any, **keywords: Any) -> Any:
        if left:
            raise left.pop()
        return works(*args, **keywords)

    return raise_or_work


async def _write(backend: SqliteBackend, count: int) -> list[Any]:
    writes = (backend.run(add_parent(id=n, name=f"lost {n}")) for n in range(count))
    return await asyncio.gather(*writes, return_exceptions=True)


async def _read(backend: SqliteBackend, count: int) -> list[Any]:
    reads = (backend.run(list_parents()) for _ in range(count))
    return await asyncio.gather(*reads, return_exceptions=True)


async def _transact(backend: SqliteBackend, count: int) -> list[Any]:
    async def transaction(n: int) -> None:
        async with backend.transaction() as tx:
            await tx.run(add_parent(id=n, name=f"lost {n}"))

    # The writer is each one's own: only the first one meets the error.
    return await asyncio.gather(
        transaction(0), *(backend.run(list_parents()) for _ in range(count)), return_exceptions=True
    )


PLACES: dict[str, tuple[Callable[[SqliteBackend], tuple[object, str]], Any, int]] = {
    "before one write": (lambda it: (it._writer, "_run_batch"), _write, 1),
    "before a batch": (lambda it: (it._writer, "_begin_for"), _write, 9),
    "before a batch commits": (lambda it: (it._writer.files, "check"), _write, 9),
    "in a batch of reads": (lambda it: (it._readers[0], "_read"), _read, 9),
    "in a transaction": (lambda it: (it._writer, "run_in_transaction"), _transact, 0),
    "before a transaction begins": (lambda it: (it._writer, "begin"), _transact, 0),
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", PLACES)
async def test_stray_error__reaches_every_caller_and_the_lane_lives(
    path: Path,
    outside: Callable[[str], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: BaseException,
) -> None:
    where, work, count = PLACES[place]
    backend = await SqliteBackend.open(of_file(path))
    owner, name = where(backend)
    monkeypatch.setattr(owner, name, once(error, getattr(owner, name)))
    async with asyncio.timeout(PATIENCE):
        answers = await work(backend, count)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(failed) == max(count, 1)
        for answer in failed:
            assert isinstance(answer, StoreFailed)
            assert answer.__cause__ is error
        assert len({id(answer) for answer in failed}) == len(failed)
        assert outside("SELECT * FROM parents") == []
        # Whatever is asked next is not touched by it, on this lane and on the other.
        assert [len(rows) for rows in await _write(backend, 5)] == [1] * 5
        assert len(await backend.run(list_parents())) == 5
        async with backend.transaction() as tx:
            await tx.run(add_parent(id=9, name="in a transaction"))
        await backend.close()
    assert outside("SELECT count(*) FROM parents") == [(6,)]


async def test_stray_error__while_rolling_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, outside: Callable[[str], list[Any]]
) -> None:
    backend = await SqliteBackend.open(of_file(path))

    async def body() -> None:
        async with backend.transaction() as tx:
            await tx.run(add_parent(id=1, name="undone"))
            broken = once(MemoryError(), lanes.roll_back)
            monkeypatch.setattr("metastore.backends.sqlite.transaction.roll_back", broken)
            raise ValueError("of the body")

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ValueError, match="of the body"):
            await body()
        await _write(backend, 3)
        await backend.close()
    assert outside("SELECT name FROM parents") == [(f"lost {n}",) for n in range(3)]


async def test_stray_error__after_the_commit_changes_no_answer(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    outside: Callable[[str], list[Any]],
) -> None:
    monkeypatch.setattr(lanes, "CHECKPOINT_AFTER", 1)
    backend = await SqliteBackend.open(of_file(path))
    checkpoint = once(MemoryError(), backend._writer._checkpoint)
    monkeypatch.setattr(backend._writer, "_checkpoint", checkpoint)
    async with asyncio.timeout(PATIENCE):
        assert [len(rows) for rows in await _write(backend, 4)] == [1] * 4
        await backend.close()
    assert len(outside("SELECT * FROM parents")) == 4
    assert "MemoryError" in caplog.text


WITHOUT_PERMISSION = textwrap.dedent(
    """
    import asyncio, json, os, sys
    from pathlib import Path
    from metastore import StoreFailed
    from metastore.backends.sqlite import lanes
    from metastore.backends.sqlite.backend import SqliteBackend
    from metastore.backends.sqlite.url import of_file
    from tests.backends.conftest import add_parent

    async def write(backend, first):
        return await asyncio.gather(
            *(backend.run(add_parent(id=first + n, name=str(first + n))) for n in range(5)),
            return_exceptions=True,
        )

    async def main(folder):
        lanes.CHECKPOINT_AFTER = 1
        os.chdir(folder)
        backend = await SqliteBackend.open(of_file(folder / "scratch.db"))
        async with asyncio.timeout(30):
            before = await write(backend, 0)
            folder.chmod(0o000)
            during = await write(backend, 10) + await write(backend, 20)
            folder.chmod(0o700)
            after = await write(backend, 30)
            await backend.close()
        print(json.dumps([[type(it).__name__ for it in told] for told in (before, during, after)]))

    folder = Path(sys.argv[1])
    if os.getuid() == 0:
        for file in (folder, *folder.iterdir()):
            os.chown(file, 65534, 65534)
        os.setuid(65534)
    asyncio.run(main(folder))
    """
)


@pytest.fixture
def open_folder(path: Path) -> Iterator[Path]:
    """A folder with the database that other users can get to."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / path.name)
        yield Path(folder)


def test_folder__that_loses_its_search_permission_for_a_moment(open_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PERMISSION, str(open_folder)],
        capture_output=True, text=True, check=False, timeout=3 * PATIENCE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, during, after = json.loads(done.stdout)
    assert before == after == ["list"] * 5
    assert during == ["StoreFailed"] * 10
    with contextlib.closing(sqlite3.connect(open_folder / "scratch.db")) as connection:
        stored = connection.execute("SELECT id FROM parents ORDER BY id").fetchall()
    assert [id_ for (id_,) in stored] == [*range(5), *range(30, 35)]
