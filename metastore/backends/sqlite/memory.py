"""The folders of databases in memory, and what processes that were killed left of theirs.

A folder belongs to the process that holds the lock on it, which dies with the process. The lock
is on the folder itself: nothing here opens a database's files, see `database_file`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from itertools import islice
from pathlib import Path
from typing import Self

__all__ = ["MemoryFolder", "sweep"]

PREFIX = "metastore-memory-"
"""How the names of the folders begin, and of nothing else: what has it is swept."""


MOST_SWEPT = 1_000
"""How many entries a sweep looks at: whatever is there, opening a store takes no longer."""


def shared() -> Path:
    """Return the folder that all users share: in memory where the machine lets us."""
    shared_memory = Path("/dev/shm")  # noqa: S108 - each user has a private folder in it
    return shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())


def place() -> Path:
    """Return where the folders are: in a folder of this user's own, made if it is not there.

    So a sweep sees the folders of this user alone. Where somebody else has taken its name, they are
    in the shared folder, and just as private.
    """
    own = shared() / f"metastore-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        own.mkdir(mode=0o700)
    found = own.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return own if is_ours and not found.st_mode & 0o077 else shared()


class MemoryFolder:
    """A private folder that goes with its owner: when it is left, or swept after a kill."""

    def __init__(self) -> None:
        self._lock: int | None = None
        self._owner = os.getpid()
        while self._lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place()))
            # A sweep may have come before the lock.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                self._lock = _lock(self.path)

    def remove(self) -> None:
        """Remove the folder and all in it; a child after a fork leaves it to its parent."""
        if self._lock is None or os.getpid() != self._owner:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def sweep() -> None:
    """Remove the folders of this user that nobody holds any more."""
    with os.scandir(place()) as entries:
        seen = [it.path for it in islice(entries, MOST_SWEPT) if it.name.startswith(PREFIX)]
    for path in map(Path, seen):
        with contextlib.suppress(OSError):
            lock = _lock(path)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(path: Path) -> int:
    """Lock the folder and return the descriptor that holds the lock.

    Raises:
        BlockingIOError: somebody holds it.
        FileNotFoundError: it is gone.
        OSError: it is no folder, somebody else's, or cannot be locked.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it until now may have removed it.
        path.lstat()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
