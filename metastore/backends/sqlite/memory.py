"""The folders of in-memory databases, and the clean-up after killed processes.

A folder belongs to the process that holds the lock on it, which is released when the process ends.
The lock is on the folder itself: nothing here opens a database file, see `database_file`.
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
"""The prefix of the folders' names, and of no other: whatever has it is swept."""


MOST_SWEPT = 1_000
"""How many entries a sweep examines, so that opening a store stays fast."""


def shared() -> Path:
    """Return the folder that all users share, in memory if the machine has one."""
    shared_memory = Path("/dev/shm")  # noqa: S108 - each user has a private folder in it
    return shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())


def place() -> Path:
    """Return the parent of the folders: this user's own folder, created if missing.

    A sweep then sees this user's folders only. If another user has taken that name, the folders
    are in the shared folder, and just as private.
    """
    own = shared() / f"metastore-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        own.mkdir(mode=0o700)
    found = own.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return own if is_ours and not found.st_mode & 0o077 else shared()


class MemoryFolder:
    """A private folder that is removed with its owner: on exit, or by a sweep after a kill."""

    def __init__(self) -> None:
        self._lock: int | None = None
        self._owner = os.getpid()
        while self._lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place()))
            # A sweep may have removed it before it was locked.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                self._lock = _lock(self.path)

    def remove(self) -> None:
        """Remove the folder and its contents; a forked child leaves it to its parent."""
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
    """Remove this user's folders whose owner has died."""
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
        BlockingIOError: another process holds the lock.
        FileNotFoundError: the folder is gone.
        OSError: it is not a folder, belongs to another user, or cannot be locked.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its previous owner may have removed it.
        path.lstat()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
