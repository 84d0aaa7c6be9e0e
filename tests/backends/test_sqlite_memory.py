"""The folders of databases in memory: swept when their process was killed, and never before."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from metastore import MetadataStore
from metastore.backends.sqlite import memory
from metastore.backends.sqlite.memory import MemoryFolder, sweep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OWNER = """
import asyncio, sys
from pathlib import Path
from metastore import MetadataStore
from metastore.backends.sqlite import memory

memory.place = lambda: Path(sys.argv[1])

async def main():
    async with MetadataStore.open("sqlite://") as store:
        await store.repositories.create(name="a", remote_url="")
        print("open", flush=True)
        sys.stdin.readline()
        assert await store.repositories.find_by_name("a")
        print("alive", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""

RACER = """
import asyncio, sys
from pathlib import Path
from metastore import MetadataStore
from metastore.backends.sqlite import memory

memory.place = lambda: Path(sys.argv[1])

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(int(sys.argv[2])):
        async with MetadataStore.open("sqlite://") as store:
            created = await store.repositories.create(name="a", remote_url="")
            assert await store.repositories.get(created.id) == created
            if n % 4 == 0:
                # Somebody who was killed.
                dead = memory.MemoryFolder()
                (dead.path / "metadata.db").write_bytes(b"x")
                memory.os.close(dead._lock)

asyncio.run(main())
"""


PLACE = memory.place


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the folders are, apart from those of everybody else."""
    monkeypatch.setattr(memory, "place", lambda: tmp_path)
    return tmp_path


def process(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def tell(owner: subprocess.Popen[str]) -> None:
    assert owner.stdin is not None
    owner.stdin.write("\n")
    owner.stdin.flush()


def hear(owner: subprocess.Popen[str]) -> str:
    assert owner.stdout is not None
    return owner.stdout.readline().strip()


async def test_open__sweeps_what_a_killed_process_left(place: Path) -> None:
    with process(OWNER, place) as owner:
        assert hear(owner) == "open"
        [left] = place.iterdir()
        async with MetadataStore.open("sqlite://") as store:
            tell(owner)
            assert hear(owner) == "alive"
            assert (left / "metadata.db").exists()
            owner.kill()
            owner.wait()
            assert (left / "metadata.db").exists()
            async with MetadataStore.open("sqlite://"):
                assert not left.exists()
                assert len(list(place.iterdir())) == 2
            await store.repositories.create(name="b", remote_url="")
    assert list(place.iterdir()) == []


def test_sweep__leaves_what_has_another_name_or_is_no_folder(place: Path, tmp_path: Path) -> None:
    (place / "metastore-other").mkdir()
    (place / "metastore-memory-file").write_text("")
    (place / "metastore-memory-link").symlink_to(place / "metastore-other")
    (place / "metastore-memory-dead").mkdir()
    sweep()
    assert sorted(path.name for path in place.iterdir()) == [
        "metastore-memory-file",
        "metastore-memory-link",
        "metastore-other",
    ]


def test_sweep__leaves_the_folders_of_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = place / "metastore-memory-dead"
    dead.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    sweep()
    assert dead.exists()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of all users, apart from the machine's."""
    monkeypatch.setattr(memory, "shared", lambda: tmp_path)
    monkeypatch.setattr(memory, "place", PLACE)
    return tmp_path


async def test_place__is_a_folder_of_the_users_own(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = [shared / f"metastore-memory-{n}" for n in range(50)]
    for folder in foreign:
        folder.mkdir()
    looked_at: list[Path] = []
    lock = memory._lock

    def noted(path: Path) -> int:
        looked_at.append(path)
        return lock(path)

    monkeypatch.setattr(memory, "_lock", noted)
    for _ in range(2):
        async with MetadataStore.open("sqlite://"):
            own = shared / f"metastore-{os.geteuid()}"
            assert own.stat().st_mode & 0o777 == 0o700
            assert [path.parent for path in own.iterdir()] == [own]
    assert {path.parent for path in looked_at} == {own}
    assert all(folder.exists() for folder in foreign)


def _link(own: Path) -> None:
    own.with_name("theirs").mkdir(mode=0o700)
    own.symlink_to(own.with_name("theirs"))


def _writable(own: Path) -> None:
    own.mkdir()
    own.chmod(0o777)


@pytest.mark.parametrize("take", [_link, _writable, lambda own: own.write_text("")])
def test_place__that_somebody_else_has_taken_is_not_used(
    shared: Path, take: Callable[[Path], object]
) -> None:
    take(shared / f"metastore-{os.geteuid()}")
    with MemoryFolder() as folder:
        assert folder.path.parent == shared
        assert folder.path.stat().st_mode & 0o777 == 0o700
        sweep()
        assert folder.path.exists()


def test_sweep__looks_at_so_many_and_no_more(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_SWEPT", 3)
    for n in range(7):
        (place / f"metastore-memory-{n}").mkdir()
    left = []
    for _ in range(3):
        sweep()
        left.append(len(list(place.iterdir())))
    assert left == [4, 1, 0]


@pytest.mark.parametrize("moment", ["mkdtemp", "open", "flock", "another sweeps"])
def test_folder__swept_before_it_was_locked_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    module, name = {
        "mkdtemp": (tempfile, "mkdtemp"),
        "open": (os, "open"),
        "flock": (fcntl, "flock"),
        "another sweeps": (tempfile, "mkdtemp"),
    }[moment]
    work = getattr(module, name)
    swept: list[Path] = []
    held: list[int] = []

    def raced(*arguments: Any, **options: Any) -> Any:
        if moment == "flock" and not swept:
            swept.extend(place.iterdir())
            monkeypatch.undo()
            monkeypatch.setattr(memory, "place", lambda: place)
            sweep()
        done = work(*arguments, **options)
        if not swept:
            swept.extend(place.iterdir())
            monkeypatch.undo()
            monkeypatch.setattr(memory, "place", lambda: place)
            if moment == "another sweeps":
                held.append(os.open(done, os.O_RDONLY))
                fcntl.flock(held[0], fcntl.LOCK_EX)
            else:
                sweep()
        return done

    monkeypatch.setattr(module, name, raced)
    with MemoryFolder() as folder:
        assert swept
        assert folder.path not in swept
        assert folder.path.exists()
        sweep()
        assert folder.path.exists()
    for descriptor in held:
        os.close(descriptor)
    sweep()
    assert list(place.iterdir()) == []


def test_folder__that_cannot_be_locked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        MemoryFolder()


def test_remove__twice_closes_one_descriptor() -> None:
    folder = MemoryFolder()
    folder.remove()
    again = os.open(os.devnull, os.O_RDONLY)
    folder.remove()
    os.fstat(again)
    os.close(again)


def test_remove__in_a_child_leaves_the_parents_folder() -> None:
    with MemoryFolder() as folder:
        child = os.fork()
        if child == 0:
            folder.remove()
            os._exit(0)
        os.waitpid(child, 0)
        sweep()
        assert folder.path.exists()


@pytest.mark.parametrize(
    ("processes", "times"),
    [
        pytest.param(3, 20, id="short"),
        pytest.param(8, 200, id="torture", marks=pytest.mark.torture),
    ],
)
def test_sweepers__race(
    place: Path, record_property: Callable[[str, object], None], processes: int, times: int
) -> None:
    racers = [process(RACER, place, times) for _ in range(processes)]
    try:
        assert [hear(racer) for racer in racers] == ["ready"] * processes
        for racer in racers:
            tell(racer)
        assert [racer.wait(300) for racer in racers] == [0] * processes
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    left = len(list(place.iterdir()))
    sweep()
    assert list(place.iterdir()) == []
    dead = processes * len(range(0, times, 4))
    assert left < dead
    record_property(
        "figures", f"{processes * times} stores opened, {dead - left} of {dead} dead ones swept"
    )
