"""Memory files: written and read as a whole or in chunks, exported nowhere but into a folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import tracemalloc
from contextlib import ExitStack, aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import sandbox
from metastore.errors import (
    ExportRefused,
    InvalidReference,
    InvalidValue,
    LimitExceeded,
    MetastoreError,
    NotFound,
    StoreCorrupt,
)
from metastore.leasing.queue import background_work
from metastore.repositories.memory_files import CHUNK_BYTES, UPLOAD_TTL
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from metastore.store import MetadataStore
    from metastore.testing import Factories, Faults
    from tests.conftest import Clock

UNKNOWN = "0190a5a4-7f62-7000-8000-000000000000"
MIB = 1 << 20


@pytest.fixture
async def job_id(store: MetadataStore) -> str:
    job = await store.jobs.create(task="Fix the build", repo_owner="acme", repo_name="shop")
    return job.id


def pattern(size: int) -> bytes:
    """Bytes whose pieces differ from each other."""
    return b"".join(n.to_bytes(4, "big") for n in range(size // 4 + 1))[:size]


async def rows(store: MetadataStore, table: str) -> int:
    """Count a table's rows, as the writer sees them."""
    [[count]] = await store._backend._writer.connection.execute_fetchall(  # type: ignore[attr-defined]
        f"SELECT count(*) FROM {table}"
    )
    return int(count)


async def execute(store: MetadataStore, sql: str) -> None:
    await store._backend._writer.connection.execute(sql)  # type: ignore[attr-defined]


# Writing and reading.


async def test_write__keeps_a_file_and_read_returns_it(
    store: MetadataStore, clock: Clock, job_id: str
) -> None:
    before = clock.now
    entry = await store.memory_files.write(job_id, path="notes/a.txt", data=b"hello")
    assert before <= entry.created_at <= clock.now
    assert dict(entry) == {
        "id": entry.id,
        "job_id": job_id,
        "path": "notes/a.txt",
        "size_bytes": 5,
        "sha256": hashlib.sha256(b"hello").hexdigest(),
        "created_at": entry.created_at,
    }
    assert await store.memory_files.get(job_id, path="notes/a.txt") == entry
    file = await store.memory_files.read(job_id, path="notes/a.txt")
    assert dict(file) == dict(entry) | {"bytes": b"hello"}


SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7]


def pieces(data: bytes) -> Iterator[bytes]:
    size = 100_003
    return (data[start : start + size] for start in range(0, len(data), size))


async def later(data: bytes) -> AsyncIterator[bytes]:
    for piece in pieces(data):
        await asyncio.sleep(0)
        yield piece


@pytest.mark.parametrize("given", [bytes, bytearray, memoryview, pieces, later])
@pytest.mark.parametrize("size", SIZES)
async def test_write__takes_bytes_and_iterables_of_any_size(
    store: MetadataStore, job_id: str, size: int, given: Any
) -> None:
    data = pattern(size)
    entry = await store.memory_files.write(job_id, path="f", data=given(data))
    assert entry.size_bytes == size
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert (await store.memory_files.read(job_id, path="f")).bytes == data
    chunks = [chunk async for chunk in store.memory_files.stream(job_id, path="f")]
    assert b"".join(chunks) == data
    assert all(len(chunk) == CHUNK_BYTES for chunk in chunks[:-1])
    assert await rows(store, "memory_file_uploads") == 0
    assert await rows(store, "memory_file_chunks") == max(0, -(-size // CHUNK_BYTES) - 1)


@pytest.mark.parametrize("before", [5, 2 * CHUNK_BYTES])
@pytest.mark.parametrize("after", [7, 3 * CHUNK_BYTES])
async def test_write__replaces_what_is_at_the_path(
    store: MetadataStore, job_id: str, before: int, after: int
) -> None:
    first = await store.memory_files.write(job_id, path="f", data=bytes(before))
    second = await store.memory_files.write(job_id, path="f", data=pattern(after))
    assert second.id != first.id
    assert (await store.memory_files.list_by_job(job_id)).items == [second]
    assert (await store.memory_files.read(job_id, path="f")).bytes == pattern(after)
    assert await rows(store, "memory_file_chunks") == max(0, after // CHUNK_BYTES - 1)


async def test_write_and_stream__keep_one_chunk_in_memory(
    store: MetadataStore, job_id: str, record_property: Any
) -> None:
    digest = hashlib.sha256()

    async def produce() -> AsyncIterator[bytes]:
        for number in range(50):
            piece = number.to_bytes(8, "big") * (MIB // 8)
            digest.update(piece)
            yield piece

    tracemalloc.start()
    try:
        entry = await store.memory_files.write(job_id, path="big", data=produce())
        _, written = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        size = 0
        async for chunk in store.memory_files.stream(job_id, path="big"):
            size += len(chunk)
        _, read = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (entry.size_bytes, size) == (50 * MIB, 50 * MIB)
    assert entry.sha256 == digest.hexdigest()
    record_property(
        "figures", f"50 MiB: {written / MIB:.1f} MiB to write, {read / MIB:.1f} MiB to read"
    )
    assert written < 5 * MIB
    assert read < 2 * MIB


@pytest.mark.parametrize("data", ["text", 7, None, [1, 2], ["text"], [b"a", None]])
async def test_write__refuses_what_is_no_bytes(
    store: MetadataStore, job_id: str, data: Any
) -> None:
    with pytest.raises(InvalidValue) as refused:
        await store.memory_files.write(job_id, path="f", data=data)
    assert (refused.value.table, refused.value.column) == ("memory_files", "bytes")
    assert (await store.memory_files.list_by_job(job_id)).items == []


@pytest.mark.parametrize("size", [1, 2 * CHUNK_BYTES])
async def test_write__needs_the_job(store: MetadataStore, size: int) -> None:
    with pytest.raises(InvalidReference) as refused:
        await store.memory_files.write(UNKNOWN, path="f", data=bytes(size))
    assert (refused.value.column, refused.value.references) == ("job_id", "jobs")


class Broken(Exception):
    pass


async def test_write__that_fails_leaves_what_was_there(store: MetadataStore, job_id: str) -> None:
    async def produce() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(CHUNK_BYTES)
        assert await rows(store, "memory_file_chunks") > 0
        raise Broken

    before = await store.memory_files.write(job_id, path="f", data=b"before")
    with pytest.raises(Broken):
        await store.memory_files.write(job_id, path="f", data=produce())
    assert await store.memory_files.get(job_id, path="f") == before
    assert await rows(store, "memory_file_uploads") == 0
    assert await rows(store, "memory_file_chunks") == 0


async def test_write__that_is_cancelled_leaves_nothing(store: MetadataStore, job_id: str) -> None:
    waiting = asyncio.Event()

    async def produce() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(CHUNK_BYTES)
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.memory_files.write(job_id, path="f", data=produce()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rows(store, "memory_file_uploads") == 0
    assert await rows(store, "memory_file_chunks") == 0


@pytest.mark.parametrize("between", [0, 1, 2, 5])
async def test_write__cancelled_twice_at_any_turn_leaves_nothing(
    store: MetadataStore, job_id: str, between: int
) -> None:
    other = (await store.jobs.create(task="t", repo_owner="o", repo_name="r")).id
    await store.memory_files.write(other, path="kept", data=pattern(2 * CHUNK_BYTES))
    kept = await rows(store, "memory_file_chunks")
    for after in range(40):
        writing = asyncio.ensure_future(
            store.memory_files.write(job_id, path="f", data=later(pattern(2 * CHUNK_BYTES + 9)))
        )
        for turns in (after, between):
            for _ in range(turns):
                await asyncio.sleep(0)
            writing.cancel()
        await asyncio.wait([writing])
        await background_work()
        # What was cancelled may have been committed, but then as a whole.
        for entry in (await store.memory_files.list_by_job(job_id)).items:
            await store.memory_files.read(job_id, path=entry.path)
            await store.memory_files.delete(job_id, path=entry.path)
        assert await rows(store, "memory_file_uploads") == 0
        assert await rows(store, "memory_file_chunks") == kept
    assert (await store.memory_files.read(other, path="kept")).size_bytes == 2 * CHUNK_BYTES


async def test_write__cancelled_again_while_it_is_undone(store: MetadataStore, job_id: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            arrived.set()
            yield bytes(CHUNK_BYTES)
            await asyncio.sleep(0)

    arrived = asyncio.Event()
    writing = asyncio.ensure_future(store.memory_files.write(job_id, path="f", data=endless()))
    while await rows(store, "memory_file_chunks") < 2:
        await arrived.wait()
    writing.cancel()
    # One turn for the cancellation to arrive; what undoes the upload waits for its hop.
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    assert writing.cancelled()
    await background_work()
    assert await rows(store, "memory_file_uploads") == 0
    assert await rows(store, "memory_file_chunks") == 0


@pytest.mark.parametrize("fault", ["full", "lost_commit", "read_only", "busy"])
async def test_write__what_the_store_would_not_undo_is_undone_with_the_next_file(
    store: MetadataStore, faults: Faults, job_id: str, fault: str
) -> None:
    async def until_it_fails() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(CHUNK_BYTES)
        planted.enter_context(getattr(faults, fault)())
        yield bytes(CHUNK_BYTES)

    with ExitStack() as planted:
        with pytest.raises(MetastoreError):
            await store.memory_files.write(job_id, path="f", data=until_it_fails())
        await background_work()
        with pytest.raises(MetastoreError):
            await store.memory_files.write(job_id, path="g", data=b"small")
    await store.memory_files.write(job_id, path="g", data=b"small")
    assert await rows(store, "memory_file_uploads") == 0
    assert await rows(store, "memory_file_chunks") == 0
    assert [it.path for it in (await store.memory_files.list_by_job(job_id)).items] == ["g"]


@pytest.mark.parametrize("last", [b"", b"the last"])
async def test_write__sweeps_what_a_dead_writer_left(
    store: MetadataStore, clock: Clock, job_id: str, last: bytes
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def produce() -> AsyncIterator[bytes]:
        yield bytes(3 * CHUNK_BYTES)
        started.set()
        await go_on.wait()
        yield last

    slow = asyncio.create_task(store.memory_files.write(job_id, path="slow", data=produce()))
    await started.wait()
    clock.now += UPLOAD_TTL - timedelta(minutes=1)
    await store.memory_files.write(job_id, path="f", data=bytes(2 * CHUNK_BYTES))
    assert await rows(store, "memory_file_uploads") == 1
    clock.now += timedelta(minutes=2)
    await store.memory_files.write(job_id, path="g", data=bytes(2 * CHUNK_BYTES))
    assert await rows(store, "memory_file_uploads") == 0
    assert await rows(store, "memory_file_chunks") == 2
    # The writer was not dead after all: it is told, and does not leave half a file.
    go_on.set()
    with pytest.raises(NotFound):
        await slow
    with pytest.raises(NotFound):
        await store.memory_files.get(job_id, path="slow")


async def test_write__learns_that_its_job_was_deleted(store: MetadataStore, job_id: str) -> None:
    async def produce() -> AsyncIterator[bytes]:
        yield bytes(3 * CHUNK_BYTES)
        await store.jobs.delete(job_id)
        assert await rows(store, "memory_file_chunks") == 0
        yield bytes(2 * CHUNK_BYTES)

    with pytest.raises(NotFound):
        await store.memory_files.write(job_id, path="f", data=produce())
    assert await rows(store, "memory_file_chunks") == 0


async def test_write__in_a_transaction_commits_with_it(store: MetadataStore, job_id: str) -> None:
    async def body() -> None:
        async with store.transaction() as tx:
            await tx.memory_files.write(job_id, path="f", data=pattern(2 * CHUNK_BYTES))
            assert (await tx.memory_files.read(job_id, path="f")).size_bytes == 2 * CHUNK_BYTES
            raise Broken

    with pytest.raises(Broken):
        await body()
    assert (await store.memory_files.list_by_job(job_id)).items == []
    assert await rows(store, "memory_file_chunks") == 0


async def test_stream__does_not_mix_a_file_with_what_replaces_it(
    store: MetadataStore, job_id: str
) -> None:
    await store.memory_files.write(job_id, path="f", data=bytes(4 * CHUNK_BYTES))
    async with aclosing(store.memory_files.stream(job_id, path="f")) as chunks:  # type: ignore[type-var]
        assert await anext(chunks) == bytes(CHUNK_BYTES)
        await store.memory_files.write(job_id, path="f", data=pattern(4 * CHUNK_BYTES))
        with pytest.raises(NotFound):
            await anext(chunks)


@pytest.mark.parametrize("damage", ["CAST('short' AS BLOB)", "randomblob(length(bytes))"])
@pytest.mark.parametrize("size", [10, 2 * CHUNK_BYTES])
async def test_read__finds_damage(
    store: MetadataStore, job_id: str, size: int, damage: str
) -> None:
    await store.memory_files.write(job_id, path="f", data=bytes(size))
    table = "memory_files" if size == 10 else "memory_file_chunks"
    await execute(store, f"UPDATE {table} SET bytes = {damage}")
    with pytest.raises(StoreCorrupt):
        await store.memory_files.read(job_id, path="f")


async def test_verbs__want_a_file_that_is_there(store: MetadataStore, job_id: str) -> None:
    await store.memory_files.write(job_id, path="f", data=bytes(2 * CHUNK_BYTES))
    await store.memory_files.delete(job_id, path="f")
    assert await rows(store, "memory_file_chunks") == 0
    for verb in (store.memory_files.get, store.memory_files.read, store.memory_files.delete):
        with pytest.raises(NotFound) as missing:
            await verb(job_id, path="f")
        assert missing.value.key == (job_id, "f")


async def test_list_by_job__walks_in_the_order_of_paths(store: MetadataStore, job_id: str) -> None:
    other = await store.jobs.create(task="Another", repo_owner="acme", repo_name="shop")
    await store.memory_files.write(other.id, path="other", data=b"")
    for path in ("b", "a/c", "ä", "a.", "a/b"):
        await store.memory_files.write(job_id, path=path, data=path.encode())
    walked: list[str] = []
    page = await store.memory_files.list_by_job(job_id, limit=2)
    walked += [entry.path for entry in page.items]
    while page.next is not None:
        page = await store.memory_files.list_by_job(job_id, after=page.next, limit=2)
        walked += [entry.path for entry in page.items]
    assert walked == ["a.", "a/b", "a/c", "b", "ä"]


async def test_files__go_with_their_job(store: MetadataStore, job_id: str) -> None:
    await store.memory_files.write(job_id, path="f", data=bytes(3 * CHUNK_BYTES))
    await store.jobs.delete(job_id)
    assert await rows(store, "memory_files") == 0
    assert await rows(store, "memory_file_chunks") == 0


# Paths.

GOOD_PATHS = [
    "a",
    "a/b/c.txt",
    ".hidden",
    "..a",
    "a..",
    "...",
    "a b",
    "ü/📏",
    "ab:c",
    "~",
    "x" * 255,
]
BAD_PATHS = [
    "",
    "/",
    "/etc/passwd",
    "//a",
    "a//b",
    "a/",
    ".",
    "..",
    "./a",
    "a/./b",
    "a/.",
    "../a",
    "a/../b",
    "a/..",
    "a\\b",
    "..\\a",
    "a:b",
    "C:",
    "c:a",
    "C:/a",
    "nul\0",
    "a\nb",
    "a\x7f",
    "\ud800",
    "a\u0308",  # decomposed
    "x" * 256,
    "ü" * 128,
    "x/" * 512 + "x",
]


@pytest.mark.parametrize("path", GOOD_PATHS)
async def test_path__inside_the_sandbox_is_taken(
    store: MetadataStore, job_id: str, path: str, tmp_path: Path
) -> None:
    await store.memory_files.write(job_id, path=path, data=b"x")
    assert (await store.memory_files.read(job_id, path=path)).path == path
    [written] = await store.memory_files.export(job_id, tmp_path)
    assert written.read_bytes() == b"x"
    assert written == tmp_path / path


@pytest.mark.parametrize("path", [*BAD_PATHS, None, 7, b"a"])
async def test_path__outside_the_sandbox_is_refused(
    store: MetadataStore, job_id: str, path: Any
) -> None:
    files = store.memory_files
    for call in (
        lambda: files.write(job_id, path=path, data=b"x"),
        lambda: files.get(job_id, path=path),
        lambda: files.read(job_id, path=path),
        lambda: files.delete(job_id, path=path),
        lambda: anext(files.stream(job_id, path=path)),
    ):
        with pytest.raises(InvalidValue) as refused:
            await call()
        assert (refused.value.table, refused.value.column) == ("memory_files", "path")
    assert (await files.list_by_job(job_id)).items == []


@pytest.mark.parametrize("path", BAD_PATHS[:19])
async def test_path__outside_the_sandbox_is_refused_by_the_table_too(
    store: MetadataStore, job_id: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metastore.repositories.memory_files.checked_path", lambda *_: None)
    with pytest.raises(InvalidValue) as refused:
        await store.memory_files.write(job_id, path=path, data=b"x")
    assert refused.value.column in ("memory_files_path_check", "path")


# Limits.


@pytest.mark.parametrize("given", [bytes, pieces])
@pytest.mark.parametrize("maximum", [10, 2 * CHUNK_BYTES])
async def test_write__keeps_to_the_bytes_of_a_file(
    store: MetadataStore, job_id: str, maximum: int, given: Any
) -> None:
    await store.memory_limits.set(job_id, max_file_bytes=maximum)
    await store.memory_files.write(job_id, path="f", data=given(bytes(maximum)))
    with pytest.raises(LimitExceeded) as refused:
        await store.memory_files.write(job_id, path="f", data=given(bytes(maximum + 1)))
    error = refused.value
    assert (error.limit, error.maximum, error.actual) == ("max_file_bytes", maximum, maximum + 1)
    assert (await store.memory_files.get(job_id, path="f")).size_bytes == maximum
    assert await rows(store, "memory_file_uploads") == 0


async def test_write__stops_reading_at_the_limit(store: MetadataStore, job_id: str) -> None:
    await store.memory_limits.set(job_id, max_file_bytes=2 * CHUNK_BYTES)
    given = 0

    def produce() -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield bytes(CHUNK_BYTES)

    with pytest.raises(LimitExceeded):
        await store.memory_files.write(job_id, path="f", data=produce())
    assert given == 3


async def test_write__counts_no_files_of_other_jobs(
    store: MetadataStore, factories: Factories, job_id: str
) -> None:
    other = await factories.job()
    for path in ("a", "b", "c"):
        await store.memory_files.write(other.id, path=path, data=b"x")
    await store.memory_limits.set(job_id, max_files=2)
    # A write that is refused although there is room is tried again, for ever if that never ends.
    async with asyncio.timeout(PATIENCE):
        for path in ("a", "b"):
            await store.memory_files.write(job_id, path=path, data=b"x")
    assert len((await store.memory_files.list_by_job(job_id)).items) == 2
    with pytest.raises(LimitExceeded):
        await store.memory_files.write(job_id, path="c", data=b"x")


async def test_write__keeps_to_the_files_of_a_job(
    store: MetadataStore, factories: Factories, job_id: str
) -> None:
    other = await factories.job()
    for id_ in (job_id, other.id):
        await store.memory_limits.set(id_, max_files=2)
    for path in ("a", "b", "a"):
        for id_ in (job_id, other.id):
            await store.memory_files.write(id_, path=path, data=b"x")
    for id_ in (job_id, other.id):
        with pytest.raises(LimitExceeded) as refused:
            await store.memory_files.write(id_, path="c", data=b"x")
        assert (refused.value.limit, refused.value.actual) == ("max_files", 3)


async def test_write__keeps_to_the_bytes_of_a_job(store: MetadataStore, job_id: str) -> None:
    await store.memory_limits.set(job_id, max_job_file_bytes=100)
    await store.memory_files.write(job_id, path="a", data=bytes(60))
    await store.memory_files.write(job_id, path="b", data=bytes(40))
    await store.memory_files.write(job_id, path="a", data=bytes(60))
    with pytest.raises(LimitExceeded) as refused:
        await store.memory_files.write(job_id, path="a", data=bytes(61))
    error = refused.value
    assert (error.limit, error.maximum, error.actual) == ("max_job_file_bytes", 100, 101)
    assert (await store.memory_files.get(job_id, path="a")).size_bytes == 60


async def test_write__racers_do_not_get_past_the_limit(store: MetadataStore, job_id: str) -> None:
    await store.memory_limits.set(job_id, max_job_file_bytes=10 * 2 * CHUNK_BYTES)
    results = await asyncio.gather(
        *(
            store.memory_files.write(job_id, path=f"f{n}", data=bytes(2 * CHUNK_BYTES))
            for n in range(16)
        ),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, LimitExceeded)]
    assert len(refused) == 6
    page = await store.memory_files.list_by_job(job_id)
    assert sum(entry.size_bytes for entry in page.items) == 10 * 2 * CHUNK_BYTES
    assert await rows(store, "memory_file_chunks") == 10


# Export.


async def test_export__writes_every_file_below_the_folder(
    store: MetadataStore, job_id: str, tmp_path: Path
) -> None:
    files = {"a.txt": b"a", "deep/er/b": pattern(2 * CHUNK_BYTES + 1), "deep/c": b""}
    for path, data in files.items():
        await store.memory_files.write(job_id, path=path, data=data)
    target = tmp_path / "out"
    written = await store.memory_files.export(job_id, target)
    assert written == [target / path for path in sorted(files)]
    found = {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }
    assert found == files
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}


async def test_export__of_nothing_makes_the_folder(
    store: MetadataStore, job_id: str, tmp_path: Path
) -> None:
    assert await store.memory_files.export(job_id, str(tmp_path / "a" / "b")) == []
    assert (tmp_path / "a" / "b").is_dir()


async def test_export__refuses_files_that_are_there_unless_told(
    store: MetadataStore, job_id: str, tmp_path: Path
) -> None:
    await store.memory_files.write(job_id, path="f", data=b"exported")
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(ExportRefused) as refused:
        await store.memory_files.export(job_id, tmp_path)
    assert refused.value.path == "f"
    assert (tmp_path / "f").read_bytes() == b"mine"
    await store.memory_files.export(job_id, tmp_path, overwrite=True)
    assert (tmp_path / "f").read_bytes() == b"exported"
    assert os.listdir(tmp_path) == ["f"]


async def test_export__of_a_damaged_file_leaves_nothing(
    store: MetadataStore, job_id: str, tmp_path: Path
) -> None:
    await store.memory_files.write(job_id, path="f", data=bytes(2 * CHUNK_BYTES))
    await execute(store, "UPDATE memory_file_chunks SET bytes = CAST('damaged' AS BLOB)")
    with pytest.raises(StoreCorrupt):
        await store.memory_files.export(job_id, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nothing may be written into, with one file."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"mine")
    return folder


def untouched(outside: Path) -> bool:
    return os.listdir(outside) == ["secret"] and (outside / "secret").read_bytes() == b"mine"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("path", "link", "to"),
    [
        ("secret", "secret", "secret"),  # the file itself
        ("new", "new", "not-there"),  # a link to nowhere
        ("sub/secret", "sub", "."),  # its folder
        ("a/sub/secret", "a/sub", "."),  # a folder deeper down
        ("sub/x/secret", "sub", "."),  # a folder that would be made
    ],
)
async def test_export__follows_no_link_out_of_the_folder(
    store: MetadataStore,
    job_id: str,
    tmp_path: Path,
    outside: Path,
    path: str,
    link: str,
    to: str,
    overwrite: bool,
) -> None:
    await store.memory_files.write(job_id, path=path, data=b"attack")
    target = tmp_path / "target"
    (target / link).parent.mkdir(parents=True)
    (target / link).symlink_to(outside / to)
    with pytest.raises(ExportRefused) as refused:
        await store.memory_files.export(job_id, target, overwrite=overwrite)
    assert refused.value.path == path
    assert "symbolic link" in refused.value.reason
    assert untouched(outside)
    assert (target / link).is_symlink()


@pytest.mark.parametrize("overwrite", [False, True])
async def test_export__is_not_led_out_by_a_folder_that_becomes_a_link(
    store: MetadataStore,
    job_id: str,
    tmp_path: Path,
    outside: Path,
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
) -> None:
    await store.memory_files.write(job_id, path="sub/secret", data=b"attack")
    target = tmp_path / "target"
    complete = sandbox.NewFile.complete

    def swap_and_complete(self: sandbox.NewFile) -> None:
        (target / "sub").rename(target / "moved")
        (target / "sub").symlink_to(outside)
        complete(self)

    monkeypatch.setattr(sandbox.NewFile, "complete", swap_and_complete)
    await store.memory_files.export(job_id, target, overwrite=overwrite)
    assert untouched(outside)
    assert (target / "moved" / "secret").read_bytes() == b"attack"


@pytest.mark.parametrize("overwrite", [False, True])
async def test_export__is_not_led_out_by_a_link_that_appears_at_the_end(
    store: MetadataStore,
    job_id: str,
    tmp_path: Path,
    outside: Path,
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
) -> None:
    await store.memory_files.write(job_id, path="f", data=b"attack")
    target = tmp_path / "target"
    complete = sandbox.NewFile.complete

    def plant_and_complete(self: sandbox.NewFile) -> None:
        (target / "f").symlink_to(outside / "secret")
        complete(self)

    monkeypatch.setattr(sandbox.NewFile, "complete", plant_and_complete)
    with pytest.raises(ExportRefused):
        await store.memory_files.export(job_id, target, overwrite=overwrite)
    assert untouched(outside)
    assert os.listdir(target) == ["f"]


async def test_export__refuses_a_file_where_a_folder_must_be(
    store: MetadataStore, job_id: str, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"file")
    await store.memory_files.write(job_id, path="a/b", data=b"below it")
    with pytest.raises(ExportRefused) as refused:
        await store.memory_files.export(job_id, tmp_path)
    assert refused.value.path == "a/b"
    assert (tmp_path / "a").read_bytes() == b"file"


@pytest.mark.parametrize("overwrite", [False, True])
async def test_export__refuses_what_is_no_regular_file(
    store: MetadataStore, job_id: str, tmp_path: Path, overwrite: bool
) -> None:
    await store.memory_files.write(job_id, path="f", data=b"x")
    (tmp_path / "f").mkdir()
    with pytest.raises(ExportRefused, match="folder"):
        await store.memory_files.export(job_id, tmp_path, overwrite=overwrite)
    (tmp_path / "f").rmdir()
    os.mkfifo(tmp_path / "f")
    with pytest.raises(ExportRefused, match="special file"):
        await store.memory_files.export(job_id, tmp_path, overwrite=overwrite)


async def test_export__leaves_no_descriptor_open(
    store: MetadataStore, job_id: str, tmp_path: Path
) -> None:
    for path in ("a/b/c", "a/d", "e"):
        await store.memory_files.write(job_id, path=path, data=b"x")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    await store.memory_files.export(job_id, tmp_path)
    with pytest.raises(ExportRefused):
        await store.memory_files.export(job_id, tmp_path)
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before


@pytest.mark.parametrize("blocked", ["write", "complete"])
async def test_export__cancelled_twice_closes_nothing_under_its_thread(
    store: MetadataStore,
    job_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocked: str,
) -> None:
    for path in ("a", "b"):
        await store.memory_files.write(job_id, path=path, data=b"x")
    begun, go_on = threading.Event(), threading.Event()
    still_open: list[bool] = []
    original = getattr(sandbox.NewFile, blocked)

    def wait(self: sandbox.NewFile, *arguments: bytes) -> None:
        begun.set()
        go_on.wait(PATIENCE)
        still_open.append(os.fstat(self._descriptor).st_nlink == 1)
        original(self, *arguments)

    monkeypatch.setattr(sandbox.NewFile, blocked, wait)
    before = len(os.listdir("/proc/self/fd"))
    exporting = asyncio.ensure_future(store.memory_files.export(job_id, tmp_path / "out"))
    await asyncio.to_thread(begun.wait, PATIENCE)
    for _ in range(2):
        exporting.cancel()
        await asyncio.sleep(0)
        assert not exporting.done()
    go_on.set()
    await asyncio.wait([exporting])
    assert exporting.cancelled()
    assert still_open == [True]
    # A file that was completed may be there; nothing else is.
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert names == (["a"] if blocked == "complete" else [])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, CHUNK_BYTES + 1])
async def test_integrity__names_a_file_whose_bytes_were_changed(
    store: MetadataStore, job_id: str, size: int
) -> None:
    sound = await store.memory_files.write(job_id, path="sound", data=pattern(size))
    changed = await store.memory_files.write(job_id, path="changed", data=pattern(size))
    assert (await store.health(integrity=True)).damage == []
    await execute(store, "PRAGMA ignore_check_constraints = ON")
    await execute(store, f"UPDATE memory_files SET bytes = x'00ff' WHERE id = '{changed.id}'")
    damage = (await store.health(integrity=True)).damage or ["nothing"]
    assert changed.id in damage[0]
    with pytest.raises(StoreCorrupt) as caught:
        await store.memory_files.read(job_id, path="changed")
    assert caught.value.row_id == changed.id
    assert (await store.memory_files.read(job_id, path="sound")).id == sound.id


@pytest.mark.parametrize(
    ("there", "refused"),
    [
        ("a", ["a/b", "a/b/c"]),
        ("a/b", ["a", "a/b/c"]),
        ("a/b/c", ["a", "a/b"]),
        ("%_", ["%_/x"]),
    ],
)
@pytest.mark.parametrize("size", [1, CHUNK_BYTES + 1], ids=["one chunk", "an upload"])
async def test_write__no_path_is_a_file_and_a_folder(
    store: MetadataStore,
    factories: Factories,
    tmp_path: Path,
    there: str,
    refused: list[str],
    size: int,
) -> None:
    job, other = await factories.job(), await factories.job()
    await store.memory_files.write(job.id, path=there, data=b"x")
    for path in refused:
        with pytest.raises(InvalidValue) as error:
            await store.memory_files.write(job.id, path=path, data=b"y" * size)
        assert error.value.column == "path"
        await store.memory_files.write(other.id, path=path, data=b"z" * size)
        await store.memory_files.delete(other.id, path=path)
    beside = ["ab", "a.b", "a-b/c", "b/a", "x%_"]
    for path in (*beside, there):
        await store.memory_files.write(job.id, path=path, data=b"y" * size)
    await store.memory_files.export(job.id, tmp_path / "exported")
    written = {
        str(path.relative_to(tmp_path / "exported")): path.read_bytes()
        for path in (tmp_path / "exported").rglob("*")
        if path.is_file()
    }
    assert written == dict.fromkeys((*beside, there), b"y" * size)
