"""memory_files: the files that a job keeps, with their bytes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec

from metastore import codec, deletion
from metastore.codec import Id, Row, new_id
from metastore.errors import (
    InvalidValue,
    LimitExceeded,
    MetastoreError,
    NotFound,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreIOError,
    StoreReadOnly,
)
from metastore.leasing.queue import give_back
from metastore.paging import DEFAULT_PAGE, MAX_PAGE, Page, checked_limit, every, page_of
from metastore.repositories.base import TableRepository
from metastore.sandbox import MAX_PATH, Target, checked_path

if TYPE_CHECKING:
    from metastore.backends.base import Columns, Values
    from metastore.repositories.base import Scope
    from metastore.statement_types import MemoryFilesStatements
    from metastore.statements import Call

__all__ = ["CHUNK_BYTES", "MemoryFile", "MemoryFileEntry", "MemoryFiles"]

CHUNK_BYTES = 256 << 10
"""Bytes of a file that are written or read at once. What is no longer is one row."""

UPLOAD_TTL = timedelta(days=1)
"""How long writing a file may take. After that its writer is taken for dead."""

Content = bytes
Data: TypeAlias = bytes | bytearray | memoryview | Iterable[bytes] | AsyncIterable[bytes]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATH)]
_Size = Annotated[int, msgspec.Meta(ge=0)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class MemoryFileEntry(Row, frozen=True):
    """A file without its bytes.

    Attributes:
        id: which content this is: writing to the path again gives it another.
        path: where it lies in the job's sandbox.
        sha256: the digest of its bytes, 64 hexadecimal digits.
        created_at: when it was written.
    """

    id: Id
    job_id: Id
    path: _Path
    size_bytes: _Size
    sha256: _Digest
    created_at: datetime


class MemoryFile(Row, frozen=True):
    """A file with its bytes.

    Attributes:
        id: which content this is: writing to the path again gives it another.
        path: where it lies in the job's sandbox.
        sha256: the digest of its bytes, 64 hexadecimal digits.
        created_at: when it was written.
        bytes: all of them, as `MemoryFiles.read` returns it.
    """

    id: Id
    job_id: Id
    path: _Path
    size_bytes: _Size
    sha256: _Digest
    created_at: datetime
    bytes: Content


class MemoryFiles(TableRepository[MemoryFile]):
    """The files of all jobs, each job's in a sandbox, within the limits of `memory_limits`.

    A path is relative, with `/` between its names, at most 1,024 characters long and in Unicode's
    normal form C; it holds no `.`, `..`, backslash, control character or drive letter.
    """

    table = "memory_files"
    row_type = MemoryFile
    _sql: MemoryFilesStatements

    @classmethod
    def inspector(cls, columns: Columns) -> codec.Inspector:
        """Return what is wrong with a row: also that its bytes are not those of its digest.

        Of a file of more than one chunk only the first is in the row; `read` checks all of them.
        """
        flaw_of = super().inspector(columns)
        decode = codec.decoder(cls.row_type, columns, table=cls.table)

        def inspect(values: Values) -> StoreCorrupt | None:
            flaw = flaw_of(values)
            if flaw is not None:
                return flaw
            [file] = decode([values])
            if len(file.bytes) < file.size_bytes:
                return None if len(file.bytes) == CHUNK_BYTES else _damaged(file)
            same = hashlib.sha256(file.bytes).hexdigest() == file.sha256
            return None if same else _damaged(file)

        return inspect

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self._decode_entries = self._decoder_of(MemoryFileEntry, self.table)
        # Uploads whose chunks could not be deleted yet: on a full disk not even that goes through.
        self._abandoned: set[tuple[str, str]] = set()

    async def write(self, job_id: Id, *, path: str, data: Data) -> MemoryFileEntry:
        """Write a whole file, replacing what is at `path`, and return its entry.

        `data` is the bytes, or gives them piece by piece: of an iterable, one chunk of 256 KiB is
        in memory at a time. Readers see the file when all of it is there; if the writing fails or
        is cancelled, what was at `path` stays, and what was uploaded is deleted: at once, or where
        the store refuses that for now, with the next file that is written or a day later.

        Raises:
            LimitExceeded: the file, or the job's files together, would have more bytes than the
                limits that hold for the job allow, or the job more files.
            InvalidReference: there is no such job.
            InvalidValue: the path leads out of the sandbox, is a folder of another of the job's
                files, or goes through one, or a value is refused.
            NotFound: the job was deleted, or a day went by, before the last piece came.
        """
        checked_path(self.table, path)
        if self._abandoned:
            await self._abandon(*self._abandoned)
        async with aclosing(_chunks(data)) as chunks:
            head = await anext(chunks, b"")
            following = await anext(chunks, None)
            if following is None:
                return await self._place(
                    new_id(), job_id, path, len(head), hashlib.sha256(head).hexdigest(), head
                )
            return await self._upload(job_id, path, head, following, chunks)

    async def _upload(
        self,
        job_id: Id,
        path: str,
        head: Content,
        following: Content,
        chunks: AsyncIterator[Content],
    ) -> MemoryFileEntry:
        """Write a file of more than one chunk."""
        [(max_file_bytes, *_)] = await self._measure(job_id, path)
        upload_id = new_id()
        now = self._now()
        before = now - UPLOAD_TTL
        try:
            *_, abandoned = await self._run_all(
                self._sql.sweep_memory_file_uploads(before=before, now=now),
                self._sql.begin_memory_file_upload(id=upload_id, job_id=job_id, created_at=now),
                self._sql.list_jobs_to_sweep(before=before, limit=MAX_PAGE),
            )
            for (of_job,) in dict.fromkeys(abandoned):
                await self._remove_discarded(of_job)
            digest = hashlib.sha256(head)
            size = len(head)
            sequence = 0
            chunk: Content | None = following
            while chunk is not None:
                sequence += 1
                size += len(chunk)
                if size > max_file_bytes:
                    raise LimitExceeded(
                        job_id, limit="max_file_bytes", maximum=max_file_bytes, actual=size
                    )
                digest.update(chunk)
                append = self._sql.append_memory_file_chunk(
                    id=upload_id, sequence=sequence, bytes=chunk
                )
                if not await self._run(append):
                    raise NotFound("memory_file_uploads", upload_id)
                chunk = await anext(chunks, None)
            end = self._sql.end_memory_file_upload(id=upload_id)
            return await self._place(upload_id, job_id, path, size, digest.hexdigest(), head, end)
        except BaseException:
            # In a task of its own: a second cancellation must not keep the chunks alive.
            await give_back(self._abandon((job_id, upload_id)), backend=self._scope.backend)
            raise

    async def _abandon(self, *uploads: tuple[str, str]) -> None:
        """Delete the chunks of uploads that came to nothing, each given with its job.

        What does not go through, say on a full disk, is tried again by the next write.
        """
        for job_id, upload_id in uploads:
            try:
                await self._run(self._sql.discard_memory_file_upload(id=upload_id, now=self._now()))
                await self._remove_discarded(job_id)
            except (StoreBusy, StoreFull, StoreIOError, StoreReadOnly):
                self._abandoned.add((job_id, upload_id))
            except MetastoreError:
                # A transaction that is gone has taken the chunks along.
                self._abandoned.discard((job_id, upload_id))
            else:
                self._abandoned.discard((job_id, upload_id))

    async def _remove_discarded(self, job_id: Id) -> None:
        for piece in self._discarded_pieces(job_id):
            await deletion.repeat(self._scope.executor, *piece)

    def _discarded_pieces(self, job_id: Id) -> tuple[tuple[Call, ...], ...]:
        return (
            (self._sql.delete_discarded_chunks(job_id=job_id, limit=deletion.PIECE_CHUNKS),),
            (self._sql.delete_discarded_uploads(job_id=job_id, limit=deletion.PIECE_ROWS),),
        )

    def pieces_of_job(self, job_id: Id, now: datetime) -> tuple[tuple[Call, ...], ...]:
        """Return the pieces of a job's deletion that remove its files and uploads."""
        return (
            (
                self._sql.discard_files_of_job(
                    job_id=job_id,
                    now=now,
                    **deletion.cut(),
                ),
                self._sql.delete_discarded_files_of_job(job_id=job_id),
            ),
            (self._sql.discard_uploads_of_job(job_id=job_id, now=now),),
            *self._discarded_pieces(job_id),
        )

    async def _place(
        self,
        file_id: Id,
        job_id: Id,
        path: str,
        size: int,
        sha256: str,
        head: Content,
        *last: Call,
    ) -> MemoryFileEntry:
        """Put a file in the place of what is at `path`, and run `last` in the same transaction."""
        while True:
            now = self._now()
            answers = await self._run_all(
                self._sql.discard_memory_file(job_id=job_id, path=path, now=now),
                self._sql.delete_memory_file_at(job_id=job_id, path=path),
                self._sql.has_discarded_memory_files(job_id=job_id),
                self._sql.create_memory_file(
                    id=file_id,
                    job_id=job_id,
                    path=path,
                    size_bytes=size,
                    sha256=sha256,
                    created_at=now,
                    bytes=head,
                ),
                *last,
            )
            if answers[3]:
                if not answers[-1]:
                    raise NotFound("memory_file_uploads", file_id)
                if answers[2][0][0]:
                    await self._remove_discarded(job_id)
                [entry] = self._decode_entries(answers[3])
                return entry
            # Room was freed meanwhile; retry.
            measured = await self._measure(job_id, path)
            [(max_bytes, max_files, max_all, files, all_bytes, in_the_way)] = measured
            if in_the_way:
                raise InvalidValue(
                    self.table, "path", "is a folder of another file, or lies in one that is a file"
                )
            for limit, maximum, actual in (
                ("max_file_bytes", max_bytes, size),
                ("max_files", max_files, files + 1),
                ("max_job_file_bytes", max_all, all_bytes + size),
            ):
                if actual > maximum:
                    raise LimitExceeded(job_id, limit=limit, maximum=maximum, actual=actual)

    async def _measure(self, job_id: Id, path: str) -> list[tuple[Any, ...]]:
        return await self._run(self._sql.measure_memory_files(job_id=job_id, path=path))

    async def get(self, job_id: Id, *, path: str) -> MemoryFileEntry:
        """Return a file's entry, without its bytes.

        Raises:
            NotFound: the job has none at this path.
            InvalidValue: the path leads out of the sandbox.
        """
        checked_path(self.table, path)
        entries = self._decode_entries(
            await self._run(self._sql.find_memory_file(job_id=job_id, path=path))
        )
        if not entries:
            raise NotFound(self.table, (job_id, path))
        return entries[0]

    async def read(self, job_id: Id, *, path: str) -> MemoryFile:
        """Return a file with all of its bytes. `stream` reads a large one piece by piece.

        Raises:
            NotFound: the job has none at this path, or it was replaced meanwhile.
            StoreCorrupt: the bytes are not those that were written.
            InvalidValue: the path leads out of the sandbox.
        """
        file = await self._open(job_id, path)
        chunks = [chunk async for chunk in self._content(file)]
        # Copying 50 MB takes tens of milliseconds.
        whole = b"".join(chunks) if len(chunks) <= 4 else await asyncio.to_thread(b"".join, chunks)
        return msgspec.structs.replace(file, bytes=whole)

    async def stream(self, job_id: Id, *, path: str) -> AsyncIterator[Content]:
        """Yield a file's bytes, 256 KiB at a time.

        A file that is replaced meanwhile is not mixed with the other: the reading ends with
        `NotFound`. Inside a transaction that cannot happen.

        Raises:
            NotFound: the job has none at this path, or it was replaced meanwhile.
            StoreCorrupt: the bytes are not those that were written; known at the end.
            InvalidValue: the path leads out of the sandbox.
        """
        async for chunk in self._content(await self._open(job_id, path)):
            yield chunk

    async def _open(self, job_id: Id, path: str) -> MemoryFile:
        """Return a file with the first of its bytes."""
        checked_path(self.table, path)
        return await self._one(self._sql.read_memory_file(job_id=job_id, path=path), (job_id, path))

    async def _content(self, file: MemoryFile) -> AsyncIterator[Content]:
        digest = hashlib.sha256(file.bytes)
        size = len(file.bytes)
        if size:
            yield file.bytes
        sequence = 0
        while size < file.size_bytes:
            sequence += 1
            chunk: Content | None = await self._scalar(
                self._sql.read_memory_file_chunk(id=file.id, sequence=sequence)
            )
            if chunk is None:
                raise await self._why_missing(file)
            digest.update(chunk)
            size += len(chunk)
            yield chunk
        if digest.hexdigest() != file.sha256:
            raise _damaged(file)

    async def _why_missing(self, file: MemoryFile) -> NotFound | StoreCorrupt:
        """Return the error of a file whose next chunk is not there."""
        now = self._decode_entries(
            await self._run(self._sql.find_memory_file(job_id=file.job_id, path=file.path))
        )
        same = bool(now) and now[0].id == file.id
        return _damaged(file) if same else NotFound(self.table, file.id)

    async def list_by_job(
        self, job_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[MemoryFileEntry, str]:
        """Return a page of the entries of a job's files, ordered by path.

        Raises:
            InvalidValue: `job_id`, `after` or `limit` is invalid.
        """
        rows = await self._run(
            self._sql.list_memory_files_by_job(
                job_id=job_id, after_path=after, limit=checked_limit(limit)
            )
        )
        return page_of(self._decode_entries(rows), limit, lambda row: row.path)

    async def delete(self, job_id: Id, *, path: str) -> None:
        """Delete a file. It is gone at once; the bytes of a large one are removed piece by piece.

        Raises:
            NotFound: the job has none at this path.
            InvalidValue: the path leads out of the sandbox.
        """
        checked_path(self.table, path)
        _, deleted, *rest = await self._run_all(
            self._sql.discard_memory_file(job_id=job_id, path=path, now=self._now()),
            self._sql.delete_memory_file(job_id=job_id, path=path),
            self._sql.has_discarded_memory_files(job_id=job_id),
        )
        if not deleted:
            raise NotFound(self.table, (job_id, path))
        if rest[0][0][0]:
            await self._remove_discarded(job_id)

    async def export(
        self, job_id: Id, directory: Path | str, *, overwrite: bool = False
    ) -> list[Path]:
        """Write a job's files into `directory` and return where they are now.

        The folder is made if it is not there. Nothing is written outside it: a symbolic link
        inside it is refused and never followed, also when it appears meanwhile. Each file appears
        when it is complete, with mode 0600. Files that are there are refused, or with `overwrite`
        replaced, each at once.

        Raises:
            ExportRefused: something is in the way; the files before it, in the order of their
                paths, are written.
            NotFound: a file was replaced while it was read.
            StoreCorrupt: the bytes of a file are not those that were written.
            OSError: the file system refuses.
            InvalidValue: `job_id`, `directory` or `overwrite` is invalid.
        """
        directory = _folder(directory)
        codec.expect("overwrite", overwrite, bool, "a boolean")
        target = Target(directory, overwrite=overwrite)
        written: list[Path] = []
        try:
            await _in_thread(target.open)
            async for entry in every(self.list_by_job, job_id):
                await self._export_file(job_id, entry.path, target)
                written.append(directory / entry.path)
        finally:
            target.close()
        return written

    async def _export_file(self, job_id: Id, path: str, target: Target) -> None:
        file = await self._open(job_id, path)
        with target.create(path) as new:
            async for chunk in self._content(file):
                await _in_thread(new.write, chunk)
            await _in_thread(new.complete)


def _folder(directory: Path | str) -> Path:
    """Return the folder to export to.

    Raises:
        InvalidValue: no folder can have this name.
    """
    codec.expect("directory", directory, (str, Path), "a path")
    try:
        if b"\0" not in os.fsencode(directory):
            return Path(directory)
    except UnicodeEncodeError:
        pass
    raise InvalidValue(None, "directory", "must be a name that a folder can have")


async def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    """Run `work` in a thread and wait for its end, however often the caller is cancelled.

    What the thread writes to must not be closed under it: the number of a closed descriptor goes
    to the next file that is opened, which may be the database.
    """
    # Not a task: those are all cancelled when the loop ends.
    ended = asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments))
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        while not ended.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([ended])
        raise


def _damaged(file: MemoryFile) -> StoreCorrupt:
    return StoreCorrupt(
        f"its bytes no longer have the digest {file.sha256}",
        table="memory_files",
        row_id=file.id,
        column="bytes",
    )


async def _chunks(data: Data) -> AsyncGenerator[Content, None]:
    """Yield the bytes in chunks of `CHUNK_BYTES`, the last of which may be shorter."""
    buffer = bytearray()
    async with aclosing(_pieces(data)) as pieces:
        async for piece in pieces:
            for start in range(0, len(piece), CHUNK_BYTES):
                buffer += piece[start : start + CHUNK_BYTES]
                if len(buffer) >= CHUNK_BYTES:
                    yield bytes(buffer[:CHUNK_BYTES])
                    del buffer[:CHUNK_BYTES]
    if buffer:
        yield bytes(buffer)


async def _pieces(data: Data) -> AsyncGenerator[memoryview, None]:
    """Yield the pieces that `data` is made of."""
    if isinstance(data, bytes | bytearray | memoryview):
        yield _piece(data)
    elif isinstance(data, AsyncIterable):
        async for piece in data:
            yield _piece(piece)
    elif isinstance(data, Iterable):
        for piece in data:
            yield _piece(piece)
    else:
        raise _no_bytes(data)


def _piece(piece: object) -> memoryview:
    try:
        return memoryview(piece).cast("B")  # type: ignore[arg-type]
    except TypeError:
        raise _no_bytes(piece) from None


def _no_bytes(value: object) -> InvalidValue:
    return InvalidValue(
        "memory_files",
        "bytes",
        "must be bytes, or an iterable of bytes",
        value_type=type(value).__name__,
    )
