"""The folders of databases in memory, and what processes that were killed left of theirs.

A folder belongs to the process that holds the lock on it, which dies with the process. The lock
is on the folder itself: nothing here opens a database's files, see `sqlite_file`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

__all__ = ["MemoryFolder", "sweep"]

PREFIX = "metastore-memory-"
"""How the names of the folders begin, and of nothing else: what has it is swept."""


def place() -> Path:
    """Return where the folders are: in memory where the machine lets us."""
    shared_memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes private folders in it
    return shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())


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
    for path in place().glob(f"{PREFIX}*"):
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
