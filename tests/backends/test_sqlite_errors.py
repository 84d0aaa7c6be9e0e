"""What SQLite's errors are called, whatever lies behind them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from metastore import (
    MetadataStore,
    MetastoreError,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreIOError,
    StoreReadOnly,
)
from metastore.backends.sqlite import database_file, errors
from metastore.backends.sqlite.errors import translate
from tests.backends.conftest import list_parents

if TYPE_CHECKING:
    from pathlib import Path


def sqlite_error(name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = getattr(sqlite3, name, sqlite3.SQLITE_IOERR)
    error.sqlite_errorname = name
    return error


WRITES = [
    "SQLITE_IOERR_WRITE",
    "SQLITE_IOERR_FSYNC",
    "SQLITE_IOERR_DIR_FSYNC",
    "SQLITE_IOERR_TRUNCATE",
    "SQLITE_IOERR_SHMSIZE",
    "SQLITE_IOERR_SHMOPEN",
]
CAUSES: dict[int | None, type[MetastoreError]] = {
    errno.ENOSPC: StoreFull,
    errno.EDQUOT: StoreFull,
    errno.EFBIG: StoreFull,
    errno.EROFS: StoreReadOnly,
    errno.EACCES: StoreReadOnly,
    errno.EIO: StoreIOError,
    errno.EMFILE: StoreIOError,
    None: StoreIOError,
}


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: errno.errorcode.get(cause, "unknown"))
@pytest.mark.parametrize("name", WRITES)
def test_io_error__is_what_the_file_system_says(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cause: int | None
) -> None:
    monkeypatch.setattr(errors, "_probe", lambda folder: {path.parent: cause}[folder])
    connection = database_file.connect(path)
    for known in (
        translate(sqlite_error(name), connection),
        translate(sqlite_error(name), path=path),
    ):
        assert type(known) is CAUSES[cause]
        assert name in str(known)
        assert cause is None or os.strerror(cause) in str(known)
    connection.close()


@pytest.mark.parametrize("name", WRITES)
def test_io_error__of_a_healthy_disk_is_not_called_full(path: Path, name: str) -> None:
    before = sorted(path.parent.iterdir())
    assert type(translate(sqlite_error(name), path=path)) is StoreIOError
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SQLITE_FULL", StoreFull),
        ("SQLITE_IOERR_READ", StoreIOError),
        ("SQLITE_IOERR_CORRUPTFS", StoreIOError),
        ("SQLITE_IOERR_SHORT_READ", StoreCorrupt),
        ("SQLITE_CORRUPT", StoreCorrupt),
        ("SQLITE_NOTADB", StoreCorrupt),
        ("SQLITE_READONLY", StoreReadOnly),
        ("SQLITE_CANTOPEN", StoreReadOnly),
        ("SQLITE_PROTOCOL", StoreBusy),
    ],
)
@pytest.mark.parametrize("is_full", [False, True])
def test_error__whose_code_says_enough(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    expected: type[MetastoreError],
    is_full: bool,
) -> None:
    # A disk that is full as well changes the name of what it may have caused only.
    monkeypatch.setattr(errors, "_probe", lambda _: errno.ENOSPC if is_full else None)
    if is_full and name == "SQLITE_CANTOPEN":
        expected = StoreFull
    assert type(translate(sqlite_error(name), path=path)) is expected


def test_error__of_a_statement_that_the_schema_does_not_fit(path: Path) -> None:
    connection = database_file.connect(path)
    connection.execute("ALTER TABLE parents RENAME TO elsewhere")
    call = list_parents()
    with pytest.raises(sqlite3.OperationalError) as raw:
        connection.execute(call.statement.sql)
    found = translate(raw.value, connection, call)
    connection.close()
    assert isinstance(found, StoreCorrupt)
    assert found.table == "parents"
    assert "no such table" in found.detail


def test_error__of_the_program_stays_its_own(path: Path) -> None:
    connection = database_file.connect(path)
    with pytest.raises(sqlite3.ProgrammingError) as raw:
        connection.execute("SELECT ?", ())
    with pytest.raises(sqlite3.ProgrammingError):
        translate(raw.value, connection, list_parents())
    connection.close()


WRITER = textwrap.dedent(
    """
    import asyncio, json, sys
    from metastore import MetadataStore, MetastoreError

    async def main(path):
        async with MetadataStore.open(f"sqlite:///{path}") as store:
            told = []
            for name in ("a", "b"):
                try:
                    await store.repositories.create(name=name, remote_url="")
                except MetastoreError as error:
                    told.append([type(error).__name__, str(error)])
            print(json.dumps(told))

    asyncio.run(main(sys.argv[1]))
    """
)


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
async def test_failing_disk__is_not_called_full(store_url: str, tmp_path: Path, call: str) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace to make system calls fail")
    path = tmp_path / "metadata.db"
    wal = f"{path}-wal"
    program = [sys.executable, "-c", WRITER, str(path)]
    ended = subprocess.run(
        [strace, "-f", "-qq", "-o", os.devnull, "-P", wal, "-e", f"trace={call}",
         "-e", f"inject={call}:error=EIO", *program],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if "ptrace" in ended.stderr:
        pytest.skip("tracing is not allowed here")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [name for name, _ in told] == ["StoreIOError", "StoreIOError"]
    assert all("SQLITE_IOERR" in message for _, message in told)
    async with MetadataStore.open(store_url) as store:
        assert (await store.repositories.list()).items == []
