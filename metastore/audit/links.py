"""Chains of hashed rows: what a link covers, and how a chain is checked.

The events of a session, and the tool executions of a task, are links of a chain: the hash of
each covers its content, and the place and hash of the link before it. `audit_chains` says where
each chain ends, and where the part of it begins that was not purged. `audit_entries` says when a
chain began and what was purged, and a checkpoint covers both. docs/audit.md has the encoding.
"""

from __future__ import annotations

from hashlib import sha256
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Chain",
    "Entry",
    "EventsJudge",
    "Finding",
    "Head",
    "Judge",
    "State",
    "ToolExecutionsJudge",
    "checkpoint_digest",
    "encode",
    "link_hash",
]

Raw = tuple[Any, ...]
"""A row as it is in the file: text as bytes."""


class Finding(msgspec.Struct, frozen=True):
    """The first place at which a chain is not what the store wrote.

    Attributes:
        resource: the table of the rows, `events` or `tool_executions`; `audit_entries` or
            `audit_checkpoints`; `schema` for a trigger or a table that is not as it must be.
        resource_id: the session or task whose chain it is; empty if that cannot be read. The
            number of the entry or checkpoint, a checkpoint's digest, the name in the schema.
        row_id: the row that was edited or inserted, or that stands where one was removed; None
            where none is left.
        what: `edited`, `removed`, `inserted`, `rewritten` (it contradicts what was recorded or
            noted by a checkpoint), `uncovered` (checkpoints were kept from noting it), `unknown`
            (no checkpoint has this digest), `unsigned` or `unreadable`.
        detail: what exactly, where there is more to say.
    """

    resource: str
    resource_id: str
    row_id: str | None
    what: str
    detail: str | None = None

    def __str__(self) -> str:
        of = f" of {self.resource_id}" if self.resource_id else ""
        row = f" at {self.row_id}" if self.row_id else ""
        if self.detail is not None:
            return f"{self.resource}{of}: {self.what}{row}: {self.detail}"
        return f"{self.resource}{of}: a row was {self.what}{row}"


class State(NamedTuple):
    """What `audit_chains` says of a chain: where it ends, and where what is left of it begins.

    Attributes:
        present: whether the session or task is still there.
        deleting: whether it is being deleted in pieces.
        passed_over: whether it has links that the latest checkpoint should have noted, or that
            nothing would make the next one note.
    """

    unchained: int = 0
    length: int = 0
    last: str = ""
    purged: int = 0
    base: str = ""
    purged_at: str | None = None
    present: bool = False
    deleting: bool = False
    passed_over: bool = False

    @property
    def link(self) -> str:
        """Place and hash of the last link, without the purge that the next one also follows."""
        return self.last.partition(";")[0]

    def moved(self, since: State) -> bool:
        """Tell whether the chain was purged, or its session or task came or went, `since` then."""
        return self._replace(length=0, last="") != since._replace(length=0, last="")


class Head(NamedTuple):
    """The state of a chain as a checkpoint noted it."""

    number: int
    state: State


class Entry(NamedTuple):
    """A row of `audit_entries` about a chain."""

    number: int
    kind: str
    unchained: int
    length: int
    purged: int
    created_at: str


class Chain(NamedTuple):
    """All that is known of a chain beside its rows. `state` is None if it is in no table."""

    state: State | None
    heads: list[Head]
    entries: list[Entry]


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


def encode(*parts: str | bytes | int | None) -> bytes:
    """Return the parts so that no other parts read the same.

    Each is one letter for its type, its length as eight bytes, and its text. Text and the bytes
    of text are the same.
    """
    encoded = bytearray()
    for part in parts:
        if part is None:
            kind, data = b"n", b""
        elif isinstance(part, int):
            kind, data = b"i", str(part).encode()
        else:
            kind, data = b"t", part if isinstance(part, bytes) else part.encode()
        encoded += kind + len(data).to_bytes(8, "big") + data
    return bytes(encoded)


def checkpoint_digest(*fields: str | int) -> str:
    """Return the digest of a checkpoint: its columns but for the digest and the signature."""
    return sha256(encode("metastore checkpoint 1", *fields)).hexdigest()


class Judge:
    """Checks the rows of one chain page by page.

    Memory does not grow with a session's events. Of a task's tool executions it holds the
    sequence numbers, and the links of calls that ended after later calls had begun.

    Attributes:
        links: how many links were followed so far.
    """

    resource: ClassVar[str]

    def __init__(self, resource_id: str, chain: Chain, unchained_until: int = 0) -> None:
        """Start at the beginning of a chain whose state is, or was when it was read, `chain`'s.

        `unchained_until` is the last position at which an event may lack a hash.
        """
        self.resource_id = resource_id
        self._start = chain.state or State()
        self._heads = chain.heads
        self._unchained_until = unchained_until
        # Place and hash of the last link, by the length of the chain.
        self._marks = {head.state.length: head.state.link for head in chain.heads}
        # What the link after a purge follows beside the link before it, by the length.
        self._suffixes = {
            entry.length: f";purged={entry.purged};at={entry.created_at}"
            for entry in chain.entries
            if entry.kind == "purge"
        }
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

    def verdict(self, chain: Chain, until: int | None = None) -> Finding | None:
        """Return the first fault of a chain whose state is `chain`'s, if all of it was read."""
        if self._finding is not None:
            return self._finding
        end = chain.state or State()
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
        if links < expected or self._last != end.link:
            return self._found(self._last_row, blame)
        if self._rewritten is not None:
            return self._found(self._rewritten, "rewritten", "not what a checkpoint noted")
        what, detail = self._flaw(end, chain)
        return self._found(None, what, detail) if what else None

    def _flaw(self, end: State, chain: Chain) -> tuple[str, str]:
        """Return what is wrong with the chain's state, and why; nothing if it is right."""
        begins = [entry for entry in chain.entries if entry.kind == "chain"]
        purges = [entry for entry in chain.entries if entry.kind in ("purge", "stub")]
        if chain.state is None:
            return ("removed", "the chain is gone") if chain.entries or chain.heads else ("", "")
        if len(begins) != 1:
            return "inserted", f"{len(begins)} entries say that the chain began"
        if end.unchained != (begins + purges)[-1].unchained:
            return "rewritten", "the number of rows without a hash is not the one recorded"
        if purges:
            purge = purges[-1]
            if (end.purged, end.purged_at) != (purge.purged, purge.created_at):
                return "rewritten", "what was purged, or when, is not what was recorded"
            if end.present and not end.deleting and chain.entries[-1].kind != "return":
                return "removed", "its beginning was purged, but what it belongs to is still there"
        elif (end.purged, end.purged_at, end.base) != (0, None, ""):
            return "removed", "no entry records the purge of its beginning"
        if end.last != end.link + self._suffixes.get(end.length, ""):
            return "rewritten", "its end does not name the purge"
        if not end.present and (end.length > end.purged or end.unchained):
            return "removed", "what it belongs to is gone without a purge"
        for head in chain.heads:
            if detail := _contradiction(head.state, end, purges):
                return "rewritten", f"checkpoint {head.number}: {detail}"
        if end.passed_over:
            return "uncovered", "checkpoints passed over the last of its links"
        return "", ""

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
        count = self._start.purged + self.links
        if self.links > self._expected:
            self._behind.append(link.row_id)
        follows = self._last + self._suffixes.get(count - 1, "")
        if _hash(follows, link.covered, marked=marked) != link.hash:
            self._broken = link.row_id
            return
        self._last = f"{link.place}:{link.hash.decode('ascii', 'replace')}"
        if self._marks.get(count, self._last) != self._last:
            self._rewritten = link.row_id if self._rewritten is None else self._rewritten

    def _found(self, row_id: bytes | None, what: str, detail: str | None = None) -> Finding:
        name = None if row_id is None else row_id.decode(errors="replace")
        return Finding(self.resource, self.resource_id, name, what, detail)


class EventsJudge(Judge):
    """Checks the events of a session, in the order of their positions."""

    resource = "events"

    def __init__(self, resource_id: str, chain: Chain, unchained_until: int = 0) -> None:
        """Begin with the first event of a session. See `Judge`."""
        super().__init__(resource_id, chain, unchained_until)
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
                late = position > self._unchained_until
                if late or self._unchained > self._start.unchained or self.links:
                    self._finding = self._found(row_id, "inserted")
                continue
            covered = (row_id, self._session, event_type, level, message, context, created_at)
            self._follow(_Link(position, hash_, covered, row_id))

    def verdict(self, chain: Chain, until: int | None = None) -> Finding | None:
        """Return the first fault of the session. See `Judge.verdict`."""
        if self._finding is None and self._unchained < (chain.state or State()).unchained:
            return self._found(self._first_row, "removed")
        return super().verdict(chain)


class ToolExecutionsJudge(Judge):
    """Checks the tool executions of a task, in any order: their links are numbered.

    An execution has one link for its start and, once it has ended, another for its end.
    """

    resource = "tool_executions"

    def __init__(self, resource_id: str, chain: Chain, unchained_until: int = 0) -> None:
        """Begin with the first tool execution of a task. See `Judge`."""
        super().__init__(resource_id, chain, unchained_until)
        self._task = resource_id.encode()
        self._places: set[int] = set()
        # Links behind the chain's end: added since that was read, or inserted.
        self._later: dict[int, bytes] = {}
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
        if hash_ is None or sequence is None or self._is_taken(sequence):
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
        if self._is_taken(finished_sequence):
            self._finding = self._found(row_id, "edited")
            return
        covered = (row_id, status, output, error, completed_at, duration)
        self._link(_Link(finished_sequence, finished_hash, covered, row_id), marked=True)

    def _is_taken(self, place: int) -> bool:
        return place in self._places or place in self._later

    def verdict(self, chain: Chain, until: int | None = None) -> Finding | None:
        """Return the first fault of the task. See `Judge.verdict`.

        Of the links behind the chain's end, those up to `until` may have been added meanwhile.
        """
        if self._finding is None and self._below is None and not self._waiting:
            until = (chain.state or State()).length if until is None else until
            beyond = min(
                ((place, row) for place, row in self._later.items() if place > until), default=None
            )
            if beyond is not None:
                return self._found(beyond[1], "inserted")
        return super().verdict(chain)

    def _link(self, link: _Link, *, marked: bool) -> None:
        if link.place > self._start.length:
            self._later[link.place] = link.row_id
            return
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


def _contradiction(noted: State, end: State, purges: Sequence[Entry]) -> str:
    """Return why a chain that ends at `end` cannot have been as `noted`; nothing if it can."""
    if noted.length > end.length or noted.purged > end.purged:
        return "it was longer, or more of it was purged"
    recorded = {(purge.purged, purge.created_at) for purge in purges}
    if noted.purged_at is not None and (noted.purged, noted.purged_at) not in recorded:
        return "an earlier purge is not recorded any more"
    if noted.purged_at == end.purged_at and noted[0] != end[0]:
        return "the number of rows without a hash was another one"
    if (noted.purged, noted.purged_at) == (end.purged, end.purged_at) and noted.base != end.base:
        return "what is left began after another link"
    if noted.length == end.purged and noted.link != end.base:
        return "what was purged ended with another link"
    return ""


def _hash(last: str, covered: tuple[bytes | None, ...], *, marked: bool) -> bytes:
    """Return what `link_hash` gives, of bytes. The end of a call has a NULL, so it is marked."""
    parts = (last.encode(), *covered)
    if marked:
        joined = b"\0" + b"\0".join(b"-" if part is None else b"=" + part for part in parts)
    else:
        joined = b"\0".join(part if part is not None else b"" for part in parts)
    return sha256(joined).hexdigest().encode()
