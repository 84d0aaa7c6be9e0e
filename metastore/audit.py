"""Chains of hashed rows: what a link covers, and how a chain is checked.

The events of a session, and the tool executions of a task, are links of a chain: the hash of
each covers its content, and the place and hash of the link before it. `audit_chains` says where
each chain ends, and where the part of it begins that was not purged.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["End", "Finding", "check_events", "check_tool_executions", "digest_of", "link_hash"]

Raw = tuple[Any, ...]
"""A row as it is in the file: text as bytes."""


class Finding(msgspec.Struct, frozen=True):
    """The first place at which a chain is not what the store wrote.

    Attributes:
        resource: the table of the rows, `events` or `tool_executions`.
        resource_id: the session or task whose chain it is.
        row_id: the row that was edited or inserted, or that stands where one was removed; None
            where none is left.
        what: `edited`, `removed`, `inserted` or `rewritten` (since a checkpoint).
    """

    resource: str
    resource_id: str
    row_id: str | None
    what: str

    def __str__(self) -> str:
        row = f" at {self.row_id}" if self.row_id else ""
        return f"{self.resource} of {self.resource_id}: a row was {self.what}{row}"


class End(NamedTuple):
    """Where a chain ends, and where what is left of it begins: a row of `audit_chains`."""

    unchained: int = 0
    length: int = 0
    last: str = ""
    purged: int = 0
    base: str = ""


class _Link(NamedTuple):
    """A row's part in a chain.

    Attributes:
        place: what the next link names it by.
        hash: as it is stored.
        covered: the columns that the hash covers, beside what the link follows.
        row_id: the row.
    """

    place: int
    hash: bytes
    covered: tuple[bytes | None, ...]
    row_id: bytes


def link_hash(*parts: str | int | None) -> str:
    """Return the SHA-256 of a link: what it follows, then each column that it covers.

    Text holds no NUL and the number of parts is fixed, so that no two links read the same. Where
    a part is no text, each is marked as a value or NULL, behind one NUL more.
    """
    try:
        joined = "\0".join(parts)  # type: ignore[arg-type]
    except TypeError:
        marked = ("-" if part is None else f"={part}" for part in parts)
        joined = "\0" + "\0".join(marked)
    return sha256(joined.encode()).hexdigest()


def digest_of(before: str, noted: Iterable[Sequence[Any]]) -> str:
    """Return the digest of a checkpoint: of what it noted, and the digest `before` it."""
    lines = "".join("\0".join(map(str, row)) + "\n" for row in noted)
    return sha256(f"{before}\n{lines}".encode()).hexdigest()


def check_events(
    session_id: str, rows: Sequence[Raw], end: End | None, marks: Mapping[int, str]
) -> Finding | None:
    """Check the events of a session, in their order, against their chain's end and `marks`.

    Marks are what checkpoints noted: the place and hash of the last link, by the chain's length.
    """
    end = end or End()
    links: list[_Link] = []
    unchained = 0
    for _, position, row_id, event_type, level, message, context, created_at, hash_ in rows:
        if hash_ is None:
            unchained += 1
            if unchained > end.unchained or links:
                return _finding("events", session_id, row_id, "inserted")
            continue
        covered = (row_id, session_id.encode(), event_type, level, message, context, created_at)
        links.append(_Link(position, hash_, covered, row_id))
    if unchained < end.unchained:
        first = rows[0][2] if rows else None
        return _finding("events", session_id, first, "removed")
    return _check("events", session_id, links, end, marks)


def check_tool_executions(
    task_id: str, rows: Sequence[Raw], end: End | None, marks: Mapping[int, str]
) -> Finding | None:
    """Check the tool executions of a task against their chain's end and `marks`."""
    covered: tuple[bytes | None, ...]
    purged = (end or End()).purged
    begun: dict[int, _Link] = {}
    ended: dict[int, _Link] = {}
    for row in rows:
        _, row_id, tool_name, arguments, output, status, error, created_at = row[:8]
        completed_at, duration, sequence, hash_, finished_sequence, finished_hash = row[8:]
        if hash_ is None or sequence is None or sequence in begun.keys() | ended.keys():
            return _finding("tool_executions", task_id, row_id, "inserted")
        covered = (row_id, task_id.encode(), tool_name, arguments, created_at)
        begun[sequence] = _Link(sequence, hash_, covered, row_id)
        if finished_hash is None or finished_sequence is None:
            result = (output, error, completed_at, duration, finished_hash, finished_sequence)
            if status != b"running" or any(part is not None for part in result):
                return _finding("tool_executions", task_id, row_id, "edited")
            continue
        if finished_sequence in begun.keys() | ended.keys():
            return _finding("tool_executions", task_id, row_id, "edited")
        covered = (row_id, status, output, error, completed_at, duration)
        ended[finished_sequence] = _Link(finished_sequence, finished_hash, covered, row_id)
        if sequence <= purged:
            # A deletion in pieces purged the beginning; the row stays as long as its end.
            del begun[sequence]
    links = [link for _, link in sorted((begun | ended).items())]
    return _check("tool_executions", task_id, links, end or End(), marks, ended=ended)


def _check(
    resource: str,
    resource_id: str,
    links: Sequence[_Link],
    end: End,
    marks: Mapping[int, str],
    ended: Mapping[int, _Link] | None = None,
) -> Finding | None:
    """Check links against their chain's end and marks.

    `ended` are those of tool executions that have ended, by place; None of events. The places of
    a task's tool executions are counted, those of events are their positions.
    """
    expected = end.length - end.purged
    blame = "removed" if len(links) < expected else "edited"
    if len(links) > expected:
        blame = "inserted"
    last = end.base
    rewritten: Finding | None = None
    for place, link in enumerate(links, end.purged + 1):
        marked = ended is not None and link.place in ended
        is_in_place = ended is None or link.place == place
        if not is_in_place or _hash(last, link.covered, marked=marked) != link.hash:
            return _finding(resource, resource_id, link.row_id, blame)
        last = f"{link.place}:{link.hash.decode('ascii', 'replace')}"
        if marks.get(place, last) != last:
            rewritten = rewritten or _finding(resource, resource_id, link.row_id, "rewritten")
    if len(links) > max(expected, 0):
        return _finding(resource, resource_id, links[max(expected, 0)].row_id, "inserted")
    if len(links) < expected or last != end.last:
        row_id = links[-1].row_id if links else None
        return _finding(resource, resource_id, row_id, blame)
    if max(marks, default=0) > end.length or marks.get(end.purged, end.base) != end.base:
        return _finding(resource, resource_id, None, "rewritten")
    return rewritten


def _hash(last: str, covered: tuple[bytes | None, ...], *, marked: bool) -> bytes:
    """Return what `link_hash` gives, of bytes. The end of a call has a NULL, so it is marked."""
    parts = (last.encode(), *covered)
    if marked:
        joined = b"\0" + b"\0".join(b"-" if part is None else b"=" + part for part in parts)
    else:
        joined = b"\0".join(part if part is not None else b"" for part in parts)
    return sha256(joined).hexdigest().encode()


def _finding(resource: str, resource_id: str, row_id: bytes | None, what: str) -> Finding:
    return Finding(
        resource, resource_id, None if row_id is None else row_id.decode(errors="replace"), what
    )
