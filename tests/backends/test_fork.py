"""A child of a fork refuses what its parent had open, and loses nothing of what it is told."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PRELUDE = """
import asyncio, gc, json, multiprocessing, os, sys, threading
from concurrent.futures import ProcessPoolExecutor
from metastore import MetadataStore, OpenedBeforeFork, StoreClosed
from metastore.testing import Factories

URL, OTHER_URL = sys.argv[1:3]

async def write(name, count, url=URL):
    async with MetadataStore.open(url) as store:
        [session] = (await store.sessions.list_recent()).items
        return await write_in(store, session, name, count)

async def write_in(store, session, name, count):
    acknowledged = []
    for n in range(count):
        acknowledged.append((await store.events.append(session.id, "t", f"{name} {n}")).id)
    return acknowledged

def work(name, url=URL):
    try:
        return asyncio.run(write(name, 30, url))
    except OpenedBeforeFork as error:
        return f"refused: {error}"
    except BaseException as error:
        return repr(error)

def forked(function, *arguments):
    # A child of a bare fork, which ends as an ordinary process does: with its destructors.
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            json.dump(function(*arguments), pipe)
        gc.collect()
        sys.exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return json.load(pipe)

def tell(**answers):
    print(json.dumps(answers))
"""

SCENES: dict[str, str] = {
    # The parent has the store open, and writes before, beside and after its children.
    "pool": """
        async def main():
            async with MetadataStore.open(URL) as store:
                [session] = (await store.sessions.list_recent()).items
                stored = await write_in(store, session, "parent", 30)
                with ProcessPoolExecutor(3, multiprocessing.get_context(METHOD)) as pool:
                    loop = asyncio.get_running_loop()
                    children = [
                        loop.run_in_executor(pool, work, f"child {n}") for n in range(3)
                    ]
                    stored += await write_in(store, session, "parent beside", 30)
                    told = await asyncio.gather(*children)
                stored += await write_in(store, session, "parent after", 30)
            tell(stored=stored, told=told)
    """,
    "process": """
        def child(queue, name):
            queue.put(work(name))

        async def main():
            context = multiprocessing.get_context(METHOD)
            queue = context.Queue()
            async with MetadataStore.open(URL) as store:
                [session] = (await store.sessions.list_recent()).items
                stored = await write_in(store, session, "parent", 10)
                children = [context.Process(target=child, args=(queue, f"c{n}")) for n in range(3)]
                for process in children:
                    process.start()
                told = [await asyncio.to_thread(queue.get) for _ in children]
                for process in children:
                    process.join()
                stored += await write_in(store, session, "parent after", 10)
            # The parent closes; a later child finds nothing open.
            late = context.Process(target=child, args=(queue, "late"))
            late.start()
            told.append(await asyncio.to_thread(queue.get))
            late.join()
            tell(stored=stored, told=told)
    """,
    # The child was forked while the file was open; the parent closes, and the child opens then.
    "parent closes first": """
        async def main():
            store = await MetadataStore.open(URL)
            [session] = (await store.sessions.list_recent()).items
            stored = await write_in(store, session, "parent", 10)
            reading, writing = os.pipe()
            answer, answering = os.pipe()
            if os.fork() == 0:
                os.read(reading, 1)
                told = []
                thread = threading.Thread(target=lambda: told.append(work("child")))
                thread.start()
                thread.join()
                os.write(answering, json.dumps(told).encode())
                os._exit(0)
            await store.close()
            os.write(writing, b"!")
            told = json.loads(await asyncio.to_thread(os.read, answer, 1 << 20))
            stored += await write("parent again", 10)
            tell(stored=stored, told=told)
    """,
    # What the child inherits is closed, dropped and collected there, in every way. Its loop does
    # not run at the fork: two processes cannot share one that does.
    "child ends like any process": """
        def main():
            run = asyncio.new_event_loop().run_until_complete
            store = run(MetadataStore.open(URL))
            [session] = run(store.sessions.list_recent()).items
            transaction = store.transaction()
            tx = run(transaction.__aenter__())
            for _ in range(4):  # more than SQLite's cache holds: some is in the log already
                run(tx.events.append(session.id, "t", "x" * 1_000_000))

            def child():
                answers = []
                try:
                    store._backend._writer.run(None)
                except OpenedBeforeFork as error:
                    answers.append("refused use: " + str(error))
                asyncio.run(store.close())
                for lane in store._backend._lanes:
                    lane.connection.raw.close()
                return answers

            told = [forked(child), forked(lambda: "left alone")]
            stored = [run(tx.events.append(session.id, "t", "after the fork")).id]
            run(transaction.__aexit__(None, None, None))
            stored += run(write_in(store, session, "parent", 30))
            run(store.close())
            tell(stored=stored, told=told)
    """,
    "grandchild and symbolic link": """
        def main():
            run = asyncio.new_event_loop().run_until_complete
            store = run(MetadataStore.open(URL))
            [session] = run(store.sessions.list_recent()).items
            link = URL.removeprefix("sqlite:///") + ".link"
            os.symlink(URL.removeprefix("sqlite:///"), link)
            told = [
                forked(lambda: forked(work, "grandchild")),
                forked(work, "by its other name", f"sqlite:///{link}"),
            ]
            stored = run(write_in(store, session, "parent", 10))
            run(store.close())
            tell(stored=stored, told=told)
    """,
    # Nothing was open at the fork: another database is, or none any more.
    "fork before open": """
        def main():
            run = asyncio.new_event_loop().run_until_complete
            store = run(MetadataStore.open(URL))
            run(store.close())
            other = run(MetadataStore.open(OTHER_URL))
            told = [forked(work, f"child {n}") for n in range(3)]
            run(other.close())
            tell(stored=run(write("parent", 10)), told=told)
    """,
}

REFUSED = "refused: "


def _run(tmp_path: Path, store_url: str, scene: str, method: str) -> tuple[list[str], list[Any]]:
    """Run a scene as a program; return the ids it was told were stored, and the answers."""
    script = tmp_path / "scene.py"
    script.write_text(
        PRELUDE
        + f"METHOD = {method!r}\n"
        + textwrap.dedent(SCENES[scene])
        + "if __name__ == '__main__':\n"
        + "    asyncio.run(main()) if asyncio.iscoroutinefunction(main) else main()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), store_url, f"sqlite:///{tmp_path}/other.db"],
        capture_output=True, text=True, check=False, timeout=2 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return answers["stored"], answers["told"]


@pytest.fixture
async def prepared(store_url: str, tmp_path: Path) -> str:
    from metastore import MetadataStore
    from metastore.testing import Factories
    from metastore.testing.template import write_template

    write_template(tmp_path / "other.db")
    async with MetadataStore.open(store_url) as store:
        await Factories(store).session()
    return store_url


def _stored(url: str) -> set[str]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {id_ for (id_,) in connection.execute("SELECT id FROM events")}


@pytest.mark.parametrize("scene", ["pool", "process"])
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_children__of_each_start_method_lose_nothing(
    prepared: str, tmp_path: Path, method: str, scene: str,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    stored, told = _run(tmp_path, prepared, scene, method)
    late = told[3:]
    refused = [answer for answer in told[:3] if isinstance(answer, str)]
    if method == "fork":
        assert len(refused) == 3
        assert all(answer.startswith(REFUSED) and "spawn" in answer for answer in refused)
    else:
        assert refused == []
    assert all(isinstance(answer, list) for answer in late), late
    acknowledged = stored + [id_ for answer in told if isinstance(answer, list) for id_ in answer]
    lost = set(acknowledged) - _stored(prepared)
    record_property(
        "figures", f"{len(refused)} refused, {len(acknowledged)} acknowledged, {len(lost)} lost"
    )
    assert lost == set()


@pytest.mark.parametrize("scene", ["parent closes first", "grandchild and symbolic link"])
def test_child__refuses_whatever_the_parent_does(prepared: str, tmp_path: Path, scene: str) -> None:
    stored, told = _run(tmp_path, prepared, scene, "fork")
    assert told
    assert all(answer.startswith(REFUSED) for answer in told), told
    assert set(stored) == _stored(prepared)


def test_child__that_ends_disturbs_no_open_transaction(prepared: str, tmp_path: Path) -> None:
    stored, told = _run(tmp_path, prepared, "child ends like any process", "fork")
    assert "refused use: " in told[0][0]
    assert told[1] == "left alone"
    assert set(stored) <= _stored(prepared)
    assert len(_stored(prepared)) == len(stored) + 4


def test_child__that_closes_a_connection_leaves_its_open_transaction_alone(
    prepared: str, tmp_path: Path
) -> None:
    # SQLite itself would roll back in the shared memory what the parent goes on with. Each
    # transaction is larger than the cache, so that half of it is in the WAL at the fork.
    script = PRELUDE + textwrap.dedent(
        """
        import pathlib
        from metastore.backends.sqlite import database_file

        def begin(url):
            connection = database_file.connect(pathlib.Path(url.removeprefix("sqlite:///")))
            # Committed, so that the WAL has something to roll back to.
            connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
            connection.execute("BEGIN IMMEDIATE")
            for _ in range(8):
                connection.execute("INSERT INTO t (text) VALUES (?)", ("x" * 1_000_000,))
            return connection

        connections = [begin(url) for url in (URL, OTHER_URL)]
        sizes = [
            os.path.getsize(url.removeprefix("sqlite:///") + "-wal") for url in (URL, OTHER_URL)
        ]
        forked(lambda: [connection.close() for connection in connections])
        for connection in connections:
            connection.execute("INSERT INTO t (text) VALUES ('after the fork')")
            connection.execute("COMMIT")
            connection.close()
        tell(sizes=sizes)
        """
    )
    other = tmp_path / "other.db"
    done = subprocess.run(
        [sys.executable, "-c", script, prepared, f"sqlite:///{other}"],
        capture_output=True, text=True, check=False, timeout=PATIENCE, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert min(json.loads(done.stdout)["sizes"]) > 1_000_000
    for path in (prepared.removeprefix("sqlite:///"), other):
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (9,)


def test_fork__before_the_store_is_opened_is_fine(prepared: str, tmp_path: Path) -> None:
    stored, told = _run(tmp_path, prepared, "fork before open", "fork")
    assert [len(answer) for answer in told] == [30] * 3, told
    assert {*stored, *(id_ for answer in told for id_ in answer)} == _stored(prepared)


def test_fork__while_another_thread_connects(prepared: str, tmp_path: Path) -> None:
    # The file is known to be open before it is.
    script = PRELUDE + textwrap.dedent(
        """
        import pathlib, sqlite3
        from metastore.backends.sqlite import database_file

        connect = sqlite3.connect
        seen = []

        def fork_in_the_middle(*arguments, **keywords):
            sqlite3.connect = connect
            connection = connect(*arguments, **keywords)
            seen.append(forked(lambda: refuses()))
            return connection

        def refuses():
            try:
                database_file.connect(pathlib.Path(URL.removeprefix("sqlite:///")))
            except OpenedBeforeFork:
                return True
            return False

        sqlite3.connect = fork_in_the_middle
        database_file.connect(pathlib.Path(URL.removeprefix("sqlite:///"))).close()
        tell(seen=seen, after=forked(refuses))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, prepared, prepared],
        capture_output=True, text=True, check=False, timeout=PATIENCE, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"seen": [True], "after": False}
