"""Paths that stay inside a sandbox, and files that are written nowhere else.

No path is trusted to be what it was a moment ago: folders are opened one at a time, by descriptor,
and symbolic links are not followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import unicodedata
from typing import TYPE_CHECKING, Self

from metastore.errors import ExportRefused, InvalidValue

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["MAX_NAME", "MAX_PATH", "Target", "checked_path"]

MAX_PATH = 1024
"""The longest path, in characters."""

MAX_NAME = 255
"""The longest name in a path, in bytes of UTF-8: the limit of file systems."""

_DRIVE = re.compile(r"[A-Za-z]:")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def checked_path(table: str, path: str) -> str:
    """Return `path` if it names a file inside a sandbox, in its canonical form.

    Raises:
        InvalidValue: it does not.
    """
    if not isinstance(path, str):
        raise InvalidValue(table, "path", "must be text", value_type=type(path).__name__)
    reason = _why_not(path)
    if reason:
        raise InvalidValue(table, "path", reason, value_type="str")
    return path


def _why_not(path: str) -> str | None:
    try:
        names = path.encode().split(b"/")
    except UnicodeEncodeError:
        return "must not hold lone surrogates"
    if not 1 <= len(path) <= MAX_PATH:
        return f"must have 1 to {MAX_PATH} characters"
    if path.startswith("/") or _DRIVE.match(path):
        return "must be relative"
    if "\\" in path:
        return "must not hold backslashes"
    if any(unicodedata.category(character) == "Cc" for character in path):
        return "must not hold NUL or other control characters"
    if any(name in (b"", b".", b"..") for name in names):
        return "must not hold empty names, `.` or `..`"
    if any(len(name) > MAX_NAME for name in names):
        return f"must not hold names longer than {MAX_NAME} bytes"
    if not unicodedata.is_normalized("NFC", path):
        return "must be in Unicode's normal form C"
    return None


class Target:
    """A folder to write files to, and nowhere else. Its methods block."""

    def __init__(self, directory: Path, *, overwrite: bool) -> None:
        self._directory = directory
        self._overwrite = overwrite
        self._root = -1

    def open(self) -> None:
        """Open the folder, and create it if missing."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The folder itself may be reached through links: the caller chose it.
        self._root = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the folder, if it was opened."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def create(self, path: str) -> NewFile:
        """Create a file, which appears at `path` when it is complete.

        Raises:
            ExportRefused: a symbolic link or a file is in place of a folder, or something is in
                place of the file.
        """
        *folders, name = path.split("/")
        with contextlib.ExitStack() as stack:
            parent = os.dup(self._root)
            stack.callback(os.close, parent)
            for folder in folders:
                parent = _enter(path, parent, folder)
                stack.callback(os.close, parent)
            _refuse_what_is_there(path, parent, name, self._overwrite)
            return NewFile(path, os.dup(parent), name, overwrite=self._overwrite)


def _enter(path: str, parent: int, name: str) -> int:
    """Open the folder `name` in the folder `parent`, and create it if missing."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode=0o700, dir_fd=parent)
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        found = _kind(parent, name)
        if found in ("folder", None):
            raise
        raise ExportRefused(path, f"{name!r} is a {found} there") from error


def _refuse_what_is_there(path: str, parent: int, name: str, overwrite: bool) -> None:
    found = _kind(parent, name)
    if found is None or (found == "file" and overwrite):
        return
    raise ExportRefused(path, f"a {found} already exists there")


def _kind(parent: int, name: str) -> str | None:
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "symbolic link" if stat.S_ISLNK(mode) else "special file"


class NewFile:
    """A file that is written under a temporary name, and appears under its own when complete.

    As a context manager, it removes an incomplete file.
    """

    def __init__(self, path: str, parent: int, name: str, *, overwrite: bool) -> None:
        self._path = path
        self._parent = parent
        self._name = name
        self._overwrite = overwrite
        self._temporary = f".metastore-{secrets.token_hex(8)}"
        try:
            self._descriptor = os.open(self._temporary, _NEW_FILE, 0o600, dir_fd=parent)
        except BaseException:
            os.close(parent)
            raise

    def write(self, chunk: bytes) -> None:
        """Append `chunk`."""
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def complete(self) -> None:
        """Flush the file to disk, and move it to its name.

        Raises:
            ExportRefused: something has appeared there meanwhile.
        """
        os.fsync(self._descriptor)
        if self._overwrite:
            _refuse_what_is_there(self._path, self._parent, self._name, overwrite=True)
            # If a link slips in here, it is replaced and not followed.
            os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            return
        try:
            os.link(
                self._temporary,
                self._name,
                src_dir_fd=self._parent,
                dst_dir_fd=self._parent,
                follow_symlinks=False,
            )
        except FileExistsError as error:
            raise ExportRefused(self._path, "something already exists there") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._parent)
        finally:
            os.close(self._descriptor)
            os.close(self._parent)
