from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidValue,
    MetadataStore,
    NotFound,
    Repository,
    SchemaOutdated,
    SchemaTooNew,
    Session,
    StoreClosed,
    TransactionActive,
    migrations,
    resources,
    statements,
    urls,
)
from metastore.backends.sqlite import memory
from metastore.codec import new_id
from metastore.repositories import repository_types
from metastore.repositories.base import _catalogue

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Clock


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/metadata.db"


# --- opening -----------------------------------------------------------------------------------


async def test_open__migrates_when_asked_and_only_then(url: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaOutdated) as missing:
        await MetadataStore.open(url)
    assert missing.value.revision is None
    assert missing.value.head == migrations.head("sqlite")
    assert f"metastore migrate upgrade --db {url}" in str(missing.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    with pytest.raises(SchemaOutdated):
        await MetadataStore.open(f"sqlite:///{tmp_path}/empty.db")
    async with MetadataStore.open(url, migrate=True) as store:
        await store.repositories.create(name="kept", remote_url="")
    async with MetadataStore.open(url) as store:
        assert await store.repositories.find_by_name("kept") is not None


async def test_open__awaited_and_closed_by_hand(url: str) -> None:
    store = await MetadataStore.open(url, migrate=True)
    await store.repositories.create(name="a", remote_url="")
    await store.close()
    await store.close()
    with pytest.raises(StoreClosed):
        await store.repositories.create(name="b", remote_url="")
    with pytest.raises(StoreClosed):
        await store.repositories.find_by_name("a")


async def test_open__the_url_comes_from_the_environment_or_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(urls.ENVIRONMENT_VARIABLE, raising=False)
    async with MetadataStore.open(migrate=True):
        pass
    assert (tmp_path / ".artifacts/data/metadata.db").is_file()
    monkeypatch.setenv(urls.ENVIRONMENT_VARIABLE, "sqlite:///named.db")
    async with MetadataStore.open(migrate=True):
        pass
    assert (tmp_path / "named.db").is_file()


@pytest.mark.parametrize(
    "url", ["mysql://x", "metadata.db", "sqlite:/x.db", "sqlite://host/x.db", "sqlite:///", ""]
)
async def test_open__refuses_urls_of_no_known_form(url: str) -> None:
    with pytest.raises(InvalidValue):
        await MetadataStore.open(url)


async def test_open__an_older_schema_names_both_revisions(url: str) -> None:
    known = [migration.id for migration in migrations.known("sqlite")]
    migrations.upgrade(urls.resolve(url), known[-2])
    with pytest.raises(SchemaOutdated) as outdated:
        await MetadataStore.open(url)
    assert (outdated.value.revision, outdated.value.head) == (known[-2], known[-1])
    async with MetadataStore.open(url, migrate=True):
        pass


async def test_open__reads_every_statement_and_none_later(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _catalogue.cache_clear()
    statements.read_statements.cache_clear()
    threads = set()

    def directory() -> Path:
        threads.add(threading.current_thread())
        return real()

    real = resources.statements_directory
    monkeypatch.setattr(resources, "statements_directory", directory)
    async with MetadataStore.open(store_url) as store:
        assert threads
        assert threading.main_thread() not in threads
        # An upgrade of the package has taken the files away.
        monkeypatch.setattr(resources, "statements_directory", lambda: tmp_path / "gone")
        for repository in repository_types():
            getattr(store, repository.table)
        await store.sessions.list_recent()
        async with MetadataStore.open(store_url) as second, second.transaction() as tx:
            assert (await tx.tasks.list_recent()).items == []


async def test_open__a_newer_schema_is_refused_without_a_write(url: str, tmp_path: Path) -> None:
    migrations.upgrade(urls.resolve(url))
    path = tmp_path / "metadata.db"
    connection = sqlite3.connect(path)
    connection.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) "
        "VALUES ('x', '9999-from-the-future', '2030-01-01')"
    )
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew) as newer:
        await MetadataStore.open(url)
    assert (newer.value.revision, newer.value.head) == (
        "9999-from-the-future",
        migrations.head("sqlite"),
    )
    assert path.read_bytes() == before


async def test_open__everything_it_creates_is_private(url: str, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        deep = tmp_path / "a" / "b"
        async with MetadataStore.open(f"sqlite:///{deep}/metadata.db", migrate=True) as store:
            await store.repositories.create(name="a", remote_url="")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in deep.iterdir()}
    finally:
        os.umask(old)
    assert modes == {
        "metadata.db": 0o600, "metadata.db-wal": 0o600, "metadata.db-shm": 0o600
    }  # fmt: skip
    assert [stat.S_IMODE(it.stat().st_mode) for it in (deep, deep.parent)] == [0o700, 0o700]


# --- in memory ---------------------------------------------------------------------------------


async def test_memory__each_store_is_alone_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "place", lambda: tmp_path)
    async with MetadataStore.open("sqlite://") as one, MetadataStore.open("sqlite://") as two:
        await one.repositories.create(name="a", remote_url="")
        assert await two.repositories.find_by_name("a") is None
    assert list(tmp_path.iterdir()) == []


async def test_memory__reads_beside_a_transaction_as_a_file_does(store: MetadataStore) -> None:
    async with store.transaction() as tx:
        await tx.repositories.create(name="a", remote_url="")
        assert await tx.repositories.find_by_name("a") is not None
        assert await store.repositories.find_by_name("a") is None


# --- transactions ------------------------------------------------------------------------------


async def test_transaction__commits_all_or_nothing(store: MetadataStore) -> None:
    async with store.transaction() as tx:
        kept = await tx.repositories.create(name="kept", remote_url="")
        await tx.worktrees.create(repository_id=kept.id, path="/kept")
    with pytest.raises(AlreadyExists):
        async with store.transaction() as tx:
            await tx.repositories.create(name="lost", remote_url="")
            await tx.repositories.create(name="kept", remote_url="")
    assert await store.worktrees.find_by_path("/kept") is not None
    assert await store.repositories.find_by_name("lost") is None


async def test_transaction__its_time_stands_still(store: MetadataStore) -> None:
    async with store.transaction() as tx:
        first = await tx.repositories.create(name="a", remote_url="")
        second = await tx.repositories.create(name="b", remote_url="")
    assert first.created_at == second.created_at
    third = await store.repositories.create(name="c", remote_url="")
    assert third.created_at > second.created_at


async def test_transaction__the_store_beside_it_is_refused_in_its_task_only(
    store: MetadataStore,
) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def body() -> None:
        async with store.transaction() as tx:
            with pytest.raises(TransactionActive):
                await store.repositories.create(name="deadlock", remote_url="")
            entered.set()
            await leave.wait()
            await tx.repositories.create(name="in", remote_url="")

    task = asyncio.ensure_future(body())
    await entered.wait()
    beside = asyncio.ensure_future(store.repositories.create(name="beside", remote_url=""))
    await asyncio.sleep(0.01)
    assert not beside.done()
    leave.set()
    await asyncio.gather(task, beside)
    assert await store.repositories.find_by_name("deadlock") is None


async def test_transaction__two_stores_do_not_meet(url: str, store: MetadataStore) -> None:
    async with MetadataStore.open(url, migrate=True) as other, store.transaction() as tx:
        await other.repositories.create(name="other", remote_url="")
        await tx.repositories.create(name="this", remote_url="")


# --- a retry with an id of one's own -----------------------------------------------------------


async def test_create__a_repeated_id_is_stored_once(
    store: MetadataStore, repository: Repository, session: Session
) -> None:
    creates: list[Any] = [
        lambda own: store.worktrees.create(repository_id=repository.id, path=f"/{own}", id=own),
        lambda own: store.sessions.create(
            session_type="debug", repository_id=repository.id, id=own
        ),
        lambda own: store.events.append(session.id, "e", "m", id=own),
        lambda own: store.steps.create(session_id=session.id, name="s", id=own),
        lambda own: store.commands.create(
            session_id=session.id, argv=["true"], working_directory="/", id=own
        ),
        lambda own: store.artifacts.create(
            session_id=session.id, artifact_type="log", name="n", content_path="/n", id=own
        ),
        lambda own: store.debugger_state.checkpoint(session.id, {}, id=own),
        lambda own: store.repositories.create(name=own, remote_url="", id=own),
    ]
    for create in creates:
        own = new_id()
        row = await create(own)
        assert row.id == own
        with pytest.raises(AlreadyExists):
            await create(own)


# --- time --------------------------------------------------------------------------------------


async def test_clock__stamps_every_row(
    store: MetadataStore, session: Session, clock: Clock
) -> None:
    clock.now += timedelta(days=1)
    started = await store.sessions.start(session.id)
    assert started.created_at == session.created_at
    assert started.updated_at == clock.now
    # RETURNING gave what is stored: the trigger that stamps hand-written updates slept.
    assert await store.sessions.get(session.id) == started


async def test_get__of_nothing(store: MetadataStore) -> None:
    for table in (
        store.repositories, store.worktrees, store.projects, store.project_locks, store.sessions,
        store.steps, store.events, store.commands, store.artifacts, store.debugger_state,
        store.auth_tokens,
    ):  # fmt: skip
        missing = new_id()
        with pytest.raises(NotFound) as error:
            await table.get(missing)
        assert (error.value.table, error.value.key) == (table.table, missing)
        with pytest.raises(InvalidValue):
            await table.get("no id")


async def test_columns__that_a_later_migration_adds_do_not_shift_the_rows_of_open_stores(
    file_store: MetadataStore, store_url: str
) -> None:
    with contextlib.closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as later:
        for table in ("repositories", "projects"):
            later.execute(f"ALTER TABLE {table} ADD COLUMN later TEXT DEFAULT 'x'")
        later.commit()
    repositories = [
        await file_store.repositories.create(name=name, remote_url="u") for name in ("a", "b")
    ]
    projects = [await file_store.projects.ensure(path=path) for path in ("/a", "/b")]
    assert (await file_store.repositories.list()).items == repositories
    assert [await file_store.projects.get(it.id) for it in projects] == projects
