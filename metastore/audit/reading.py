"""What an audit reads: chains, entries and checkpoints, a page at a time."""

from __future__ import annotations

import asyncio
import re
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from metastore.audit.links import (
    Chain,
    Entry,
    EventsJudge,
    Finding,
    Head,
    Judge,
    State,
    ToolExecutionsJudge,
    checkpoint_digest,
    encode,
)
from metastore.paging import MAX_PAGE
from metastore.rows import FEW_ROWS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from metastore.backends.base import Values
    from metastore.statement_types import AuditChainsStatements
    from metastore.statements import Call

__all__ = [
    "NO_CHECKPOINT",
    "PAGE_BYTES",
    "AuditCheckpoint",
    "AuditedTable",
    "Findings",
    "Rows",
    "Run",
    "Source",
    "entry_of",
    "head_of",
    "ids_of",
    "is_id",
    "is_last",
    "judge_of",
    "next_limit",
    "off_loop",
    "state_of",
    "text_of",
]

Rows: TypeAlias = "list[Values]"
"""Rows of one chain as they are in the file."""

FIRST_POSITION = -(2**63)
"""Before every position, also one that was tampered with."""

PAGE_BYTES = 4 << 20
"""The bytes of text at which a page of an audit ends; its last row may exceed it."""

SMALL = 1 << 16
"""Bytes that are hashed sooner than a thread could be asked to."""

Findings: TypeAlias = list[Finding]

Run: TypeAlias = "Callable[[Call], Awaitable[Rows]]"


class AuditedTable(StrEnum):
    """The tables whose rows are chained."""

    EVENTS = "events"
    TOOL_EXECUTIONS = "tool_executions"


class AuditCheckpoint(NamedTuple):
    """A row of `audit_checkpoints`."""

    number: int
    digest: str
    previous: str
    run: str
    position: int
    entry: int
    chains: int
    links: int
    heads: int
    heads_hash: str
    entries_hash: str
    schema_hash: str
    created_at: str
    next_key: str | None
    signature: str | None

    def computed(self) -> str:
        """Return the digest of the row as it is."""
        fields = self._asdict()
        for name in ("digest", "next_key", "signature"):
            del fields[name]
        return checkpoint_digest(*fields.values())


NO_CHECKPOINT = AuditCheckpoint(0, "", "", "", 0, 0, 0, 0, 0, "", "", "", "", None, None)


class Noted(NamedTuple):
    """The hash over what a run noted, and what it adds up to."""

    heads: int
    hash: str
    chains: int
    links: int


class Source:
    """What an audit reads of chains, entries and checkpoints."""

    def __init__(self, run: Run, sql: AuditChainsStatements) -> None:
        self._run = run
        self._sql = sql

    async def noted(self, run: str, number: int) -> Noted:
        """Return the hash over what a run noted, as far as that is in the database."""
        digest = sha256()
        heads = chains = links = 0
        after = (b"", b"")
        while page := await self._run(
            self._sql.list_run_heads(
                run=run,
                number=number,
                after_resource=after[0],
                after_chain=after[1],
                limit=MAX_PAGE,
            )
        ):
            await _hash_rows(digest.update, [row[:-1] for row in page])
            heads += len(page)
            chains += sum(row[-1] is None for row in page)
            links += sum(row[3] - (row[-1] or 0) for row in page)
            after = page[-1][:2]
        return Noted(heads, digest.hexdigest(), chains, links)

    async def entries_hash(self, after: int, until: int) -> str:
        """Return the hash over the entries behind `after`, up to `until`."""
        digest = sha256()
        while page := await self.entries(after, until):
            await _hash_rows(digest.update, page)
            after = page[-1][0]
        return digest.hexdigest()

    async def entries(self, after: int, until: int) -> Rows:
        """Return a page of the entries behind `after`, up to `until`."""
        return await self._run(
            self._sql.list_audit_entries(after_number=after, until_number=until, limit=MAX_PAGE)
        )

    async def chain(self, resource: AuditedTable, resource_id: str) -> Chain:
        """Read all that is known of a chain: what noted it first, so that it is never ahead."""
        heads = await self._run(
            self._sql.list_chain_heads_of(resource=resource, resource_id=resource_id)
        )
        state = await self.state(resource, resource_id)
        entries = await self._run(
            self._sql.list_chain_entries_of(resource=resource, resource_id=resource_id)
        )
        return Chain(state, list(map(head_of, heads)), list(map(entry_of, entries)))

    async def state(self, resource: AuditedTable, resource_id: str) -> State | None:
        """Return where a chain ends now; None if nothing was ever chained there."""
        rows = await self._run(
            self._sql.list_chain_states_of(resource=resource, resource_id=resource_id)
        )
        return state_of(rows[0]) if rows else None

    async def second_look(
        self, resource: AuditedTable, resource_id: str, unchained_until: int
    ) -> Finding | None:
        """Check a chain again, up to a state that is read after its rows.

        Links are only ever added, so that all up to the state read before the rows are there. It
        starts again if the chain is purged meanwhile.
        """
        while True:
            before = await self.chain(resource, resource_id)
            judge = judge_of(resource, resource_id, before, unchained_until)
            place = await self.add_rows(judge, None)
            after = await self.chain(resource, resource_id)
            last = await self.state(resource, resource_id) or State()
            start, end = before.state or State(), after.state or State()
            if end.moved(start) or last.moved(end) or len(before.entries) != len(after.entries):
                continue
            if resource is AuditedTable.EVENTS:
                appended = end.length - end.purged - judge.links
                await self.add_rows(judge, place, appended)
                return judge.verdict(Chain(after.state, before.heads, after.entries))
            # A call that ended after its row was read has its end on no page.
            return judge.verdict(before, end.length)

    async def add_rows(self, judge: Judge, place: Any, most: int | None = None) -> Any:
        """Let the rows behind `place` be checked, `most` of them; return the last place."""
        is_events = judge.resource == AuditedTable.EVENTS
        if place is None:
            place = FIRST_POSITION if is_events else b""
        most_at_once = MAX_PAGE
        while most is None or most > 0:
            limit = most_at_once if most is None else min(most, most_at_once)
            call = (
                self._sql.list_audited_events_of(
                    resource_id=judge.resource_id,
                    after_position=place,
                    limit=limit,
                    byte_limit=PAGE_BYTES,
                )
                if is_events
                else self._sql.list_audited_tool_executions_of(
                    resource_id=judge.resource_id,
                    after_row=place,
                    limit=limit,
                    byte_limit=PAGE_BYTES,
                )
            )
            page = await self._run(call)
            if not page:
                break
            place = page[-1][1]
            await off_loop(judge.add, page)
            if is_last(page, limit):
                break
            most = most and most - len(page)
            most_at_once = next_limit(most_at_once, page)
        return place


def judge_of(resource: AuditedTable, resource_id: str, chain: Chain, unchained_until: int) -> Judge:
    """Return what judges the rows of a chain."""
    judge = EventsJudge if resource is AuditedTable.EVENTS else ToolExecutionsJudge
    return judge(resource_id, chain, unchained_until)


def state_of(row: Values) -> State:
    """Return the state of a chain that a row holds."""
    _, unchained, length, last, purged, base, purged_at, present, deleting, passed_over = row
    return State(
        unchained,
        length,
        last.decode(),
        purged,
        base.decode(),
        _maybe(purged_at),
        bool(present),
        bool(deleting),
        bool(passed_over),
    )


def head_of(row: Values) -> Head:
    """Return what a checkpoint noted of a chain."""
    return Head(row[1], state_of((row[0], *row[2:], False, False, False)))


def entry_of(row: Values) -> Entry:
    """Return the entry that a row holds."""
    _, number, kind, unchained, length, purged, created_at = row
    return Entry(number, kind.decode(), unchained, length, purged, created_at.decode())


async def off_loop(work: Callable[[Rows], None], rows: Rows) -> None:
    """Work on rows that may be few and large."""
    if len(rows) <= FEW_ROWS and _bytes_of(rows) <= SMALL:
        work(rows)
    else:
        await asyncio.to_thread(work, rows)


def is_last(page: Rows, limit: int) -> bool:
    """Return whether nothing was behind a page: beside a busy writer there always is more."""
    return len(page) < limit and _bytes_of(page) < PAGE_BYTES


def next_limit(limit: int, page: Rows) -> int:
    """Return how many rows to ask for behind a page.

    The sizes of that many are looked at, which must not take much longer than to read those that
    fit: where rows are large, they are few.
    """
    return min(MAX_PAGE, 2 * len(page)) if page else limit


def _bytes_of(rows: Rows) -> int:
    return sum(len(value) for row in rows for value in row if isinstance(value, bytes))


async def _hash_rows(update: Callable[[bytes], None], rows: Rows) -> None:
    def work(rows: Rows) -> None:
        for row in rows:
            update(encode(*row))

    await off_loop(work, rows)


def ids_of(rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """Return the ids in the first column that are ids: others have no chain of the store's."""
    return [text for text in dict.fromkeys(text_of(row[0]) for row in rows) if is_id(text)]


def _maybe(text: bytes | None) -> str | None:
    return None if text is None else text.decode()


def text_of(text: bytes | None) -> str:
    """Return text that may have been tampered with, and need not be UTF-8."""
    return "" if text is None else text.decode(errors="replace")


def is_id(text: str) -> bool:
    """Return whether `text` has the form of the store's ids."""
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None
