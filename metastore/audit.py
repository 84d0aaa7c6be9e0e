"""Chains of hashed rows: what a link covers, and how a chain is checked.

The events of a session, and the tool executions of a task, are links of a chain: the hash of
each covers its content, and the place and hash of the link before it. `audit_chains` says where
each chain ends, and where the part of it begins that was not purged.
"""

from __future__ import annotations

from hashlib import sha256
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "End",
    "EventsJudge",
    "Finding",
    "Judge",
    "ToolExecutionsJudge",
    "digest_of",
    "link_hash",
]

Raw = tuple[Any, ...]
"""A row as it is in the file: text as bytes."""


class Finding(msgspec.Struct, frozen=True):
    """The first place at which a chain is not what the store wrote.

    Attributes:
        resource: the table of the rows, `events` or `tool_executions`.
        resource_id: the session or task whose chain it is; empty if that cannot be read.
        row_id: the row that was edited or inserted, or that stands where one was removed; None
            where none is left.
        what: `edited`, `removed`, `inserted`, `rewritten` (since a checkpoint) or `unreadable`.
        detail: of what is unreadable, why.
    """

    resource: str
    resource_id: str
    row_id: str | None
    what: str
    detail: str | None = None

    def __str__(self) -> str:
        if self.detail is not None:
            of = f" of {self.resource_id}" if self.resource_id else ""
            return f"{self.resource}{of}: {self.what}: {self.detail}"
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


class Judge:
    """Checks the rows of one chain page by page.

    Memory does not grow with a session's events. Of a task's tool executions it holds the
    sequence numbers, and the links of calls that ended after later calls had begun.

    Attributes:
        links: how many links were followed so far.
    """

    resource: ClassVar[str]

    def __init__(self, resource_id: str, end: End | None, marks: Mapping[int, str]) -> None:
        """Start at the beginning of a chain whose end is, or was when it was read, `end`.

        Marks are what checkpoints noted: the place and hash of the last link, by the chain's
        length.
        """
        self.resource_id = resource_id
        self._start = end or End()
        self._marks = marks
        self.links = 0
        self._last = self._start.base
        self._last_row: bytes | None = None
        # A finding that nothing read later changes; the other two depend on the number of links.
        self._finding: Finding | None = None
        self._broken: bytes | None = None
        self._rewritten: bytes | None = None
        # Rows of the links beyond `end`: appended since, or inserted.
        self._behind: list[bytes] = []

    def add(self, rows: Sequence[Raw]) -> None:
        """Check further rows of the chain, in its order."""
        raise NotImplementedError

    def verdict(self, end: End | None) -> Finding | None:
        """Return the first fault of a chain that ends at `end`, if all of it was read."""
        if self._finding is not None:
            return self._finding
        end = end or End()
        links, broken = self._count(), self._first_broken()
        expected = end.length - end.purged
        blame = "removed" if links < expected else "edited"
        if links > expected:
            blame = "inserted"
        if broken is not None:
            return self._found(broken, blame)
        if links > max(expected, 0):
            first = max(expected - self._expected, 0)
            return self._found(self._behind[first], "inserted")
        if links < expected or self._last != end.last:
            return self._found(self._last_row, blame)
        marks = self._marks
        if max(marks, default=0) > end.length or marks.get(end.purged, end.base) != end.base:
            return self._found(None, "rewritten")
        return None if self._rewritten is None else self._found(self._rewritten, "rewritten")

    def _count(self) -> int:
        """Return how many links were read, in place or not."""
        return self.links

    def _first_broken(self) -> bytes | None:
        """Return the row of the first link that does not follow the one before it, if any."""
        return self._broken

    @property
    def _expected(self) -> int:
        return max(self._start.length - self._start.purged, 0)

    def _follow(self, link: _Link, *, marked: bool = False) -> None:
        """Check the next link of the chain."""
        self.links += 1
        self._last_row = link.row_id
        if self._broken is not None:
            return
        if self.links > self._expected:
            self._behind.append(link.row_id)
        if _hash(self._last, link.covered, marked=marked) != link.hash:
            self._broken = link.row_id
            return
        self._last = f"{link.place}:{link.hash.decode('ascii', 'replace')}"
        if self._marks.get(self._start.purged + self.links, self._last) != self._last:
            self._rewritten = link.row_id if self._rewritten is None else self._rewritten

    def _found(self, row_id: bytes | None, what: str) -> Finding:
        name = None if row_id is None else row_id.decode(errors="replace")
        return Finding(self.resource, self.resource_id, name, what)


class EventsJudge(Judge):
    """Checks the events of a session, in the order of their positions."""

    resource = "events"

    def __init__(self, resource_id: str, end: End | None, marks: Mapping[int, str]) -> None:
        """Begin with the first event of a session. See `Judge`."""
        super().__init__(resource_id, end, marks)
        self._session = resource_id.encode()
        self._unchained = 0
        self._first_row: bytes | None = None

    def add(self, rows: Sequence[Raw]) -> None:
        """Check further events. See `Judge.add`."""
        for _, position, row_id, event_type, level, message, context, created_at, hash_ in rows:
            if self._finding is not None:
                return
            self._first_row = row_id if self._first_row is None else self._first_row
            if hash_ is None:
                self._unchained += 1
                if self._unchained > self._start.unchained or self.links:
                    self._finding = self._found(row_id, "inserted")
                continue
            covered = (row_id, self._session, event_type, level, message, context, created_at)
            self._follow(_Link(position, hash_, covered, row_id))

    def verdict(self, end: End | None) -> Finding | None:
        """Return the first fault of the session. See `Judge.verdict`."""
        if self._finding is None and self._unchained < (end or End()).unchained:
            return self._found(self._first_row, "removed")
        return super().verdict(end)


class ToolExecutionsJudge(Judge):
    """Checks the tool executions of a task, in any order: their links are numbered.

    An execution has one link for its start and, once it has ended, another for its end.
    """

    resource = "tool_executions"

    def __init__(self, resource_id: str, end: End | None, marks: Mapping[int, str]) -> None:
        """Begin with the first tool execution of a task. See `Judge`."""
        super().__init__(resource_id, end, marks)
        self._task = resource_id.encode()
        self._places: set[int] = set()
        # A heap, by place, of links whose predecessor was not read yet.
        self._waiting: list[tuple[int, _Link, bool]] = []
        # The lowest link at a purged place, where there can be none.
        self._below: tuple[int, bytes] | None = None

    def add(self, rows: Sequence[Raw]) -> None:
        """Check further tool executions. See `Judge.add`."""
        for row in rows:
            if self._finding is not None:
                return
            self._add(row)

    def _add(self, row: Raw) -> None:
        covered: tuple[bytes | None, ...]
        _, row_id, tool_name, arguments, output, status, error, created_at = row[:8]
        completed_at, duration, sequence, hash_, finished_sequence, finished_hash = row[8:]
        if hash_ is None or sequence is None or sequence in self._places:
            self._finding = self._found(row_id, "inserted")
            return
        covered = (row_id, self._task, tool_name, arguments, created_at)
        is_straddling = (finished_sequence or 0) > self._start.purged >= sequence
        if not is_straddling:
            # A deletion in pieces has purged the beginning of one that straddles the cut; its row
            # stays for its end.
            self._link(_Link(sequence, hash_, covered, row_id), marked=False)
        if finished_hash is None or finished_sequence is None:
            result = (output, error, completed_at, duration, finished_hash, finished_sequence)
            if status != b"running" or any(part is not None for part in result):
                self._finding = self._found(row_id, "edited")
            return
        if finished_sequence in self._places:
            self._finding = self._found(row_id, "edited")
            return
        covered = (row_id, status, output, error, completed_at, duration)
        self._link(_Link(finished_sequence, finished_hash, covered, row_id), marked=True)

    def _link(self, link: _Link, *, marked: bool) -> None:
        self._places.add(link.place)
        if link.place <= self._start.purged:
            lowest = (link.place, link.row_id)
            self._below = lowest if self._below is None else min(self._below, lowest)
            return
        heappush(self._waiting, (link.place, link, marked))
        while self._waiting and self._waiting[0][0] == self._start.purged + self.links + 1:
            _, following, is_end = heappop(self._waiting)
            self._follow(following, marked=is_end)

    def _count(self) -> int:
        return len(self._places)

    def _first_broken(self) -> bytes | None:
        if self._below is not None:
            return self._below[1]
        if self._broken is None and self._waiting:
            return self._waiting[0][1].row_id
        return self._broken


def _hash(last: str, covered: tuple[bytes | None, ...], *, marked: bool) -> bytes:
    """Return what `link_hash` gives, of bytes. The end of a call has a NULL, so it is marked."""
    parts = (last.encode(), *covered)
    if marked:
        joined = b"\0" + b"\0".join(b"-" if part is None else b"=" + part for part in parts)
    else:
        joined = b"\0".join(part if part is not None else b"" for part in parts)
    return sha256(joined).hexdigest().encode()
