"""The database's files are private, and nobody but SQLite opens or closes them while connected."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, NamedTuple

import pytest

from metastore import MetadataStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM = textwrap.dedent(
    """
    import asyncio, os, sys
    from metastore import MetadataStore, NewEvent

    async def main(url, offence):
        path = url.removeprefix("sqlite:///")
        async with MetadataStore.open(url, migrate=True, readers=2) as store:
            session = await store.sessions.create(session_type="test_generation", project_path="/p")
            if offence == "open and close":
                os.close(os.open(path, os.O_RDONLY))
            if offence == "read the WAL":
                open(path + "-wal", "rb").read()
            if offence == "chmod by descriptor":
                with open(path + "-shm", "rb") as file:
                    os.fchmod(file.fileno(), 0o600)
            # Enough that the writer checkpoints by itself.
            for _ in range(12):
                events = [NewEvent("t", "m" * 5_000) for _ in range(100)]
                await store.events.append_many(session.id, events)
                await store.events.list(limit=50)
            async with store.transaction() as tx:
                await tx.sessions.start(session.id)
            await asyncio.gather(*(store.sessions.get(session.id) for _ in range(20)))
            health = await store.health(integrity=True)
            assert health.reachable, health
            async with MetadataStore.open(url) as other:
                await other.sessions.complete(session.id)

    asyncio.run(main(*sys.argv[1:]))
    if os.path.isdir("/proc/self/fd"):
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                name = os.readlink(f"/proc/self/fd/{descriptor}")
            except FileNotFoundError:
                continue  # of the listing itself
            assert not name.startswith(sys.argv[1].removeprefix("sqlite:///")), name
    """
)

WATCH = textwrap.dedent(
    """
    import os, sys

    FILES = {sys.argv[1].removeprefix("sqlite:///") + suffix for suffix in ("", "-wal", "-shm")}
    connections = 0

    def watch(event, arguments):
        global connections
        if event == "sqlite3.connect":
            connections += any(str(arguments[0]).startswith(f"file:{file}?") for file in FILES)
        elif event == "open" and connections and not isinstance(arguments[0], int | None):
            if os.path.realpath(os.fsdecode(arguments[0])) in FILES:
                print("offence", *arguments)

    sys.addaudithook(watch)
    """
)
"""Stands in for strace: it sees the files that Python opens, and none that SQLite opens."""

SYSTEM_CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
DESCRIPTOR = re.compile(r"^(\d+)<([^>]*)>")
CALLS = "openat,open,close,dup,dup2,dup3,fchmod,pread64,pwrite64,read,fcntl"
SQLITE_OPENS = "O_RDWR|O_CREAT|O_NOFOLLOW|O_CLOEXEC", "O_RDWR|O_NOFOLLOW|O_CLOEXEC"


class Trace(NamedTuple):
    """What a program did with its database's files, as the kernel saw it.

    Attributes:
        opened: how often SQLite opened one of them, of which `closed` were closed again.
        offences: whatever was done beside SQLite.
    """

    opened: int
    closed: int
    offences: list[str]


def read_trace(text: str, database: Path) -> Trace:
    """Read what strace wrote with `-y`, which names the file of each descriptor.

    SQLite opens read-write and without following links, and keeps a descriptor that it cannot
    close yet for a later connection: a close in the middle is its own only at the very end of
    the last connection. Whatever else opens one of the files is an offence.
    """
    names = {str(database), f"{database}-wal", f"{database}-shm"}
    opened = closed = 0
    foreign: set[str] = set()
    offences = []
    for line in _joined(text):
        found = SYSTEM_CALL.match(line)
        if found is None or not any(f"{name}" in line for name in names):
            continue
        name, arguments, result = found["name"], found["arguments"], found["result"]
        if name in ("open", "openat") and int(result) >= 0:
            quoted = re.search(r'"([^"]*)"', arguments)
            if quoted is None or quoted[1] not in names:
                continue
            if any(f", {flags}" in arguments for flags in SQLITE_OPENS):
                opened += 1
                foreign.discard(result)
            elif opened or "O_EXCL" not in arguments:
                offences.append(line)
                foreign.add(result)
            else:
                foreign.add(result)
        elif descriptor := DESCRIPTOR.match(arguments):
            number, path = descriptor[1], descriptor[2]
            if path not in names:
                continue
            if name == "close" and number not in foreign:
                closed += 1
            elif name == "close":
                foreign.discard(number)
                if opened > closed:
                    offences.append(line)
            elif name.startswith("dup") or (name == "fchmod" and number in foreign):
                offences.append(line)
    return Trace(opened, closed, offences)


def _joined(text: str) -> list[str]:
    """Return the lines of a trace, those that another thread's interrupted put together."""
    lines: list[str] = []
    halves: dict[str, str] = {}
    for line in text.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.endswith("<unfinished ...>"):
            halves[pid] = rest.removesuffix("<unfinished ...>").rstrip()
        elif resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", rest):
            lines.append(f"{pid} {halves.pop(pid, '')}{resumed[1]}")
        else:
            lines.append(f"{pid} {rest}")
    return lines


@pytest.fixture
def trace(tmp_path: Path) -> Callable[[str], Trace]:
    """Runs the program under strace."""
    strace = shutil.which("strace")
    works = strace and subprocess.run(
        [strace, "-f", "-o", "/dev/null", "true"], capture_output=True, check=False
    )
    if not strace or not works or works.returncode:
        pytest.skip("there is no strace here, or it may not trace")
    database = tmp_path / "metadata.db"
    log = tmp_path / "trace.log"

    def run(offence: str) -> Trace:
        command = [strace, "-f", "-y", "-qq", "-e", f"trace={CALLS}", "-o", str(log)]
        program = [sys.executable, "-c", PROGRAM, f"sqlite:///{database}", offence]
        done = subprocess.run([*command, *program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return read_trace(log.read_text(), database)

    return run


def test_descriptors__nobody_but_sqlite_opens_or_closes_the_files(
    trace: Callable[[str], Trace], record_property: Callable[[str, object], None]
) -> None:
    opened, closed, offences = trace("none")
    record_property("figures", f"SQLite opened {opened} and closed {closed} descriptors, no other")
    assert offences == []
    # The migration's connection, a writer and two readers, one more of each for the second store.
    assert opened >= 3
    assert closed == opened


@pytest.mark.parametrize("offence", ["open and close", "read the WAL", "chmod by descriptor"])
def test_descriptors__this_would_notice(trace: Callable[[str], Trace], offence: str) -> None:
    assert trace(offence).offences != []


@pytest.fixture
def watch(tmp_path: Path) -> Callable[[str], list[str]]:
    """Runs the program, and returns its offences as far as Python tells of them."""
    database = tmp_path.resolve() / "metadata.db"

    def run(offence: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", WATCH + PROGRAM, f"sqlite:///{database}", offence],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_descriptors__python_opens_none_of_the_files(watch: Callable[[str], list[str]]) -> None:
    assert watch("none") == []


@pytest.mark.parametrize("offence", ["open and close", "read the WAL", "chmod by descriptor"])
def test_descriptors__this_would_be_noticed_without_strace(
    watch: Callable[[str], list[str]], offence: str
) -> None:
    [line] = watch(offence)
    assert line.startswith("offence")


async def test_modes__everything_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on the way"
    seen: dict[str, int] = {}

    def look() -> None:
        for path in (folder.parent, *folder.parent.rglob("*")):
            seen[path.name] = stat.S_IMODE(path.stat().st_mode)

    before = os.umask(0)
    try:
        async with MetadataStore.open(f"sqlite:///{folder}/metadata.db", migrate=True) as store:
            look()
            await store.repositories.create(name="a", remote_url="u")
            async with store.transaction() as tx:
                await tx.repositories.create(name="b", remote_url="u")
                look()
            await store.health(integrity=True)
            look()
        look()
    finally:
        os.umask(before)
    assert seen.keys() >= {"metadata.db", "metadata.db-wal", "metadata.db-shm"}
    folders = {"made", "on the way"}
    assert {name: oct(mode) for name, mode in seen.items() if name not in folders} == {
        name: oct(0o600) for name in seen if name not in folders
    }
    assert seen["on the way"] == seen["made"] == 0o700


async def test_modes__in_memory_is_as_private(store: MetadataStore) -> None:
    await store.repositories.create(name="a", remote_url="u")
    path: Path = store._backend.path  # type: ignore[attr-defined]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
