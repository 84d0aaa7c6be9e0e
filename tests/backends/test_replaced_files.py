"""The file that was opened is the file that is used, whatever happens to its name."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from metastore import InvalidValue, MetadataStore, StoreClosed, StoreReplaced, urls
from metastore.backends.sqlite import database_file, lanes
from metastore.testing import Factories
from metastore.testing.template import write_template
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metastore import Session


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _delete(path: Path) -> None:
    path.unlink()


def _move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def _move_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


def _delete_the_wal(path: Path) -> None:
    _wal(path).unlink()


def _replace_the_wal(path: Path) -> None:
    _wal(path).unlink()
    _wal(path).touch()


def _restore_over(path: Path) -> None:
    backup = path.with_name("backup.db")
    write_template(backup)
    backup.replace(path)


def _delete_all(path: Path) -> None:
    shutil.rmtree(path.parent)


ACCIDENTS = [
    _delete, _move, _move_the_folder, _delete_the_wal, _replace_the_wal, _restore_over, _delete_all,
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_template(folder / "metadata.db")
    return folder / "metadata.db"


async def _append(store: MetadataStore, session: Session) -> None:
    await store.events.append(session.id, "t", "after")


async def _append_together(store: MetadataStore, session: Session) -> None:
    answers = await asyncio.gather(
        *(store.events.append(session.id, "t", "after") for _ in range(7)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {StoreReplaced}
    raise answers[0]  # type: ignore[misc]


async def _append_many(store: MetadataStore, session: Session) -> None:
    await store.sessions.create(session_type="docker_deployment", project_path="/p")


async def _transact(store: MetadataStore, session: Session) -> None:
    async with store.transaction() as tx:
        await tx.events.append(session.id, "t", "after")


async def _check_health(store: MetadataStore, session: Session) -> None:
    report = await store.health(integrity=True)
    assert (report.reachable, report.writable, report.damage) == (False, False, None)
    [problem] = report.problems
    assert "was deleted or moved" in problem or "was replaced" in problem
    raise StoreReplaced(report.url, is_missing=False)


WAYS = [_append, _append_together, _append_many, _transact, _check_health]


@pytest.mark.parametrize("notice", WAYS, ids=lambda it: it.__name__.strip("_"))
@pytest.mark.parametrize("accident", ACCIDENTS, ids=lambda it: it.__name__.strip("_"))
async def test_replaced__nothing_is_acknowledged_after(
    path: Path,
    accident: Callable[[Path], None],
    notice: Callable[[MetadataStore, Session], Any],
) -> None:
    async with asyncio.timeout(PATIENCE):
        store = await MetadataStore.open(f"sqlite:///{path}")
        session = await Factories(store).session()
        await store.events.append(session.id, "t", "before")
        # Links to the files as they were opened. To open them here would drop SQLite's locks.
        opened = [path.parent.parent / "database", path.parent.parent / "wal"]
        os.link(path, opened[0])
        os.link(_wal(path), opened[1])
        before = [file.stat().st_size for file in opened]
        accident(path)
        with pytest.raises(StoreReplaced):
            await notice(store, session)
        for _ in range(2):
            with pytest.raises(StoreReplaced):
                await store.events.append(session.id, "t", "later")
            with pytest.raises(StoreReplaced):
                await store.sessions.get(session.id)
            with pytest.raises(StoreReplaced):
                async with store.transaction():
                    pass
        report = await store.health()
        assert not report.healthy
        assert [file.stat().st_size for file in opened] == before, "nothing was written either"
        await store.close()
        with pytest.raises((StoreClosed, StoreReplaced)):
            await store.sessions.get(session.id)


async def test_replaced__the_new_database_is_left_alone(path: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        old = await MetadataStore.open(f"sqlite:///{path}")
        session = await Factories(old).session()
        _restore_over(path)
        # As an operator would do it who forgot the other two.
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        new = await MetadataStore.open(f"sqlite:///{path}")
        sessions = [(await Factories(new).session()).id for _ in range(20)]
        with pytest.raises(StoreReplaced):
            await old.events.append(session.id, "t", "too late")
        await old.close()
        assert _wal(path).exists(), "closing removed another store's log"
        with closing(sqlite3.connect(path)) as other:
            stored = {id_ for (id_,) in other.execute("SELECT id FROM sessions")}
        assert stored == set(sessions)
        await Factories(new).session()
        await new.close()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert other.execute("SELECT count(*) FROM sessions").fetchone() == (21,)


async def test_replaced__a_log_that_took_the_place_is_left_alone(path: Path) -> None:
    store = await MetadataStore.open(f"sqlite:///{path}")
    session = await Factories(store).session()
    _replace_the_wal(path)
    file = _wal(path).stat().st_ino
    with pytest.raises(StoreReplaced):
        await store.events.append(session.id, "t", "too late")
    await store.close()
    assert _wal(path).stat().st_ino == file


async def test_replaced__in_the_middle_of_a_transaction(path: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        store = await MetadataStore.open(f"sqlite:///{path}")
        session = await Factories(store).session()
        with pytest.raises(StoreReplaced):
            async with store.transaction() as tx:
                await tx.events.append(session.id, "t", "lost")
                _move(path)
        await store.close()
    # The log of a file that was moved away belongs to it.
    _wal(path).rename(_wal(path.with_name("moved.db")))
    with closing(sqlite3.connect(path.with_name("moved.db"))) as other:
        assert other.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
        assert other.execute("SELECT count(*) FROM events").fetchone() == (0,)


async def test_replaced__while_it_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = database_file._connect

    def connect_and_replace(opened: Path) -> sqlite3.Connection:
        connection = connect(opened)
        monkeypatch.undo()
        _restore_over(path)
        return connection

    monkeypatch.setattr(database_file, "_connect", connect_and_replace)
    with pytest.raises(StoreReplaced):
        await MetadataStore.open(f"sqlite:///{path}")


async def test_moved_and_back__is_the_same_file(path: Path) -> None:
    async with MetadataStore.open(f"sqlite:///{path}") as store:
        session = await Factories(store).session()
        path.rename(path.with_name("elsewhere"))
        path.with_name("elsewhere").rename(path)
        await store.events.append(session.id, "t", "the same file")
        assert (await store.health()).problems == []


# --- relative paths and links ------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def _link(path: Path, folder: Path) -> str:
    (folder / "link.db").symlink_to(path)
    return f"sqlite:///{folder}/link.db"


def _link_to_the_folder(path: Path, folder: Path) -> str:
    (folder / "link").symlink_to(path.parent)
    return f"sqlite:///{folder}/link/{path.name}"


def _relative(path: Path, folder: Path) -> str:
    os.chdir(path.parent)
    return f"sqlite:///{path.name}"


def _relative_link(path: Path, folder: Path) -> str:
    _link(path, folder)
    os.chdir(folder)
    return "sqlite:///link.db"


URLS = [_link, _link_to_the_folder, _relative, _relative_link]


@pytest.mark.parametrize("url", URLS, ids=lambda it: it.__name__.strip("_"))
async def test_path__is_resolved_once(
    path: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: Callable[[Path, Path], str],
) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(lanes, "CHECKPOINT_AFTER", 20)
    async with MetadataStore.open(url(path, elsewhere)) as store:
        session = await Factories(store).session()
        # What the name says now: another, damaged file.
        os.chdir(elsewhere)
        for link in elsewhere.iterdir():
            link.unlink()
        (elsewhere / path.name).write_bytes(os.urandom(8192))
        (elsewhere / "link.db").write_bytes(os.urandom(8192))
        sizes = []
        for _ in range(100):
            await store.events.append(session.id, "t", "x" * 20_000)
            sizes.append(_wal(path).stat().st_size)
        assert max(sizes) < 100 * 20_000 / 2, "the log is checkpointed"
        report = await store.health(integrity=True)
        assert (report.problems, report.damage) == ([], [])
        assert set(report.details["file_modes"]) == {
            f"{path}{suffix}" for suffix in ("", "-wal", "-shm")
        }
    assert sorted(file.name for file in elsewhere.iterdir()) == ["link.db", path.name]
    assert not _wal(path).exists()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM events").fetchone() == (100,)


@pytest.mark.parametrize("names", [("a.db", "link.db"), ("link.db", "a.db")])
async def test_path__two_names_of_one_file_share_its_log(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    write_template(tmp_path / "a.db")
    (tmp_path / "link.db").symlink_to("a.db")
    first, second = (f"sqlite:///{tmp_path}/{name}" for name in names)
    async with MetadataStore.open(first) as one, MetadataStore.open(second) as two:
        session = await Factories(one).session()
        await two.events.append(session.id, "t", "of the other")
        assert len((await one.events.list_by_session(session.id)).items) == 1
        assert sorted(it.name for it in tmp_path.iterdir()) == [
            "a.db", "a.db-shm", "a.db-wal", "link.db",
        ]  # fmt: skip


async def test_path__of_a_working_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InvalidValue):
        urls.resolve("sqlite:///metadata.db")
    with pytest.raises(InvalidValue):
        await MetadataStore.open("sqlite:///metadata.db", migrate=True)


async def test_path__the_working_directory_goes_while_the_store_is_open(
    path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "CHECKPOINT_AFTER", 1)
    monkeypatch.chdir(elsewhere)
    async with (
        asyncio.timeout(PATIENCE),
        MetadataStore.open("sqlite:///../data/metadata.db") as store,
    ):
        elsewhere.rmdir()
        session = await Factories(store).session()
        for _ in range(5):
            await store.events.append(session.id, "t", "m")
        assert (await store.health(integrity=True)).problems == []
