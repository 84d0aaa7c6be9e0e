"""audit_chains: whether events and tool executions are what the store wrote."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from enum import StrEnum
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from metastore import codec
from metastore.audit import End, EventsJudge, Finding, Judge, ToolExecutionsJudge, digest_of
from metastore.codec import Id, Row
from metastore.errors import InvalidValue, StoreCorrupt
from metastore.paging import MAX_PAGE, Page, checked_limit, page_of
from metastore.repositories.base import TableRepository
from metastore.rows import off_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from metastore.backends.base import Values

__all__ = ["AuditChain", "AuditChains", "AuditReport", "AuditedTable"]

Rows = list["Values"]
"""Rows of one chain as they are in the file."""

FIRST_POSITION = -(2**63)
"""Before every position, also one that was tampered with."""

Findings = list[Finding]

Marks = dict[tuple[str, str], dict[int, str]]


class AuditedTable(StrEnum):
    """The tables whose rows are chained."""

    EVENTS = "events"
    TOOL_EXECUTIONS = "tool_executions"


class AuditChain(Row, frozen=True):
    """Where a chain ends; of a chain that was purged, the stub.

    Attributes:
        resource_id: the session or task.
        unchained: how many rows are from before there were chains.
        length: how many links there ever were.
        last: place and hash of the last one, what the next one follows.
        purged: how many links went with their session or task, and `base` the last of them.
    """

    resource: AuditedTable
    resource_id: Id
    unchained: int
    length: int
    last: str
    purged: int
    base: str
    purged_at: datetime | None


class AuditReport(msgspec.Struct, frozen=True):
    """What a verification found.

    Attributes:
        chains: how many chains were checked.
        rows: how many rows.
        findings: the first fault of each chain that has one.
    """

    chains: int
    rows: int
    findings: list[Finding]


class AuditChains(TableRepository[AuditChain]):
    """The chains of events and tool executions."""

    table = "audit_chains"
    row_type = AuditChain
    key = ("resource", "resource_id")

    async def get(self, resource: str, resource_id: str) -> AuditChain:
        """Return the chain of a session's events or a task's tool executions.

        Raises:
            NotFound: nothing was ever chained there.
        """
        return await self._one(
            self._sql.get_audit_chain(resource=resource, resource_id=resource_id), resource_id
        )

    async def list(
        self, resource: str, *, after: str | None = None, limit: int = 50
    ) -> Page[AuditChain, str]:
        """Return a page of the chains of a table, stubs among them."""
        rows = await self._all(
            self._sql.list_audit_chains(
                resource=resource, after_place=after, limit=checked_limit(limit)
            )
        )
        return page_of(rows, limit, lambda row: row.resource_id)

    async def checkpoint(self) -> str:
        """Note where every chain ends, and return a digest of it, to be kept elsewhere."""
        await self._run(self._sql.create_audit_checkpoint(now=self._now()))
        digests = [digest async for digest, _ in self._checkpoints()]
        return digests[-1] if digests else digest_of("", ())

    async def verify(self, *, checkpoint: str | None = None) -> AuditReport:
        """Check every chain, beside the store's other work, and report the first fault of each.

        What cannot be read is a finding too, and the rest is checked all the same.

        With the digest of a `checkpoint` it also proves that nothing before that was rewritten,
        not even as a whole. The rows are read and checked a page at a time.

        Raises:
            InvalidValue: no checkpoint has this digest; what it noted was rewritten, if it was
                ever given out.
        """
        marks = await self._marks(checkpoint) if checkpoint is not None else {}
        findings: Findings = []
        chains = rows = 0
        for resource in AuditedTable:
            seen: set[str] = set()
            judge: Judge | None = None
            of = end = None
            try:
                async for group in self._groups(resource):
                    if group[0][0] != of or not seen:
                        findings += await self._faults(judge, end, marks)
                        of = group[0][0]
                        seen.add(_readable(of))
                        judge, end, faults = await self._begin(resource, _readable(of), marks)
                        findings += faults
                    rows += len(group)
                    if judge is not None:
                        judge, faults = await _add(judge, group)
                        findings += faults
            except StoreCorrupt as damage:
                findings.append(_unreadable(resource, "", damage))
            findings += await self._faults(judge, end, marks)
            try:
                async for resource_id in self._chains(resource):
                    if resource_id not in seen:
                        seen.add(resource_id)
                        if not _is_id(resource_id):
                            reason = "the chain's id is not a UUID"
                            findings.append(_unreadable(resource, resource_id, reason))
                            continue
                        judge, end, faults = await self._begin(resource, resource_id, marks)
                        findings += faults
                        findings += await self._faults(judge, end, marks)
            except StoreCorrupt as damage:
                findings.append(_unreadable(resource, "", damage))
            chains += len(seen)
            findings += [
                Finding(resource.value, resource_id, None, "removed")
                for (of_resource, resource_id), noted in marks.items()
                if of_resource == resource and resource_id not in seen and max(noted) > 0
            ]
        return AuditReport(chains, rows, findings)

    async def _begin(
        self, resource: AuditedTable, resource_id: str, marks: Marks
    ) -> tuple[Judge | None, End | None, Findings]:
        """Return a chain's judge and its end, or why it cannot be read."""
        try:
            end = await self._end(resource, resource_id)
        except StoreCorrupt as damage:
            return None, None, [_unreadable(resource, resource_id, damage)]
        return _judge(resource, resource_id, end, marks), end, []

    async def _faults(self, judge: Judge | None, end: End | None, marks: Marks) -> Findings:
        """Return the first fault of a chain that was read, if it has one."""
        if judge is None:
            return []
        resource, resource_id = AuditedTable(judge.resource), judge.resource_id
        try:
            finding = judge.verdict(end)
            if finding is None:
                return []
            if _is_id(resource_id):
                # A row may have come in between two reads.
                if resource is AuditedTable.EVENTS:
                    finding = await self._second_look_at_events(resource_id, marks)
                else:
                    finding = await self._second_look_at_tool_executions(resource_id, marks)
        except StoreCorrupt as damage:
            finding = _unreadable(resource, resource_id, damage)
        except _WRONG_TYPE:
            finding = _unreadable(resource, resource_id, _NOT_OF_ITS_TYPE)
        return [finding] if finding else []

    async def _second_look_at_events(self, session_id: str, marks: Marks) -> Finding | None:
        """Check a session again, up to an end that is read after its events.

        Events are only ever appended, so that the events before that end are all there. It starts
        again if the session is purged meanwhile.
        """
        while True:
            start = await self._end(AuditedTable.EVENTS, session_id) or End()
            judge = _judge(AuditedTable.EVENTS, session_id, start, marks)
            position = await self._add_events(judge, FIRST_POSITION)
            end = await self._end(AuditedTable.EVENTS, session_id) or End()
            if start._replace(length=end.length, last=end.last) == end:
                appended = end.length - end.purged - judge.links
                await self._add_events(judge, position, appended)
                return judge.verdict(end)

    async def _add_events(self, judge: Judge, position: int, most: int | None = None) -> int:
        """Let the events after `position` be checked, `most` of them; return the last position."""
        while most is None or most > 0:
            limit = MAX_PAGE if most is None else min(most, MAX_PAGE)
            page = await self._run(
                self._sql.list_audited_events_of(
                    resource_id=judge.resource_id, after_position=position, limit=limit
                )
            )
            if page:
                position = page[-1][1]
                await off_loop(judge.add, page)
            if len(page) < limit:
                break
            most = most and most - limit
        return position

    async def _second_look_at_tool_executions(self, task_id: str, marks: Marks) -> Finding | None:
        """Check a task again, from one statement: its rows change until they have ended."""
        found = await self._run(self._sql.list_audited_tool_executions_of(resource_id=task_id))
        end = found[0][: len(End._fields)]
        rows = [row[len(End._fields) :] for row in found]
        judge = _judge(
            AuditedTable.TOOL_EXECUTIONS, task_id, None if end[0] is None else End(*end), marks
        )
        await off_loop(judge.add, [row for row in rows if row[0] is not None])
        return judge.verdict(None if end[0] is None else End(*end))

    async def _end(self, resource: AuditedTable, resource_id: str) -> End | None:
        if not _is_id(resource_id):
            return None
        chain = await self._find(
            self._sql.get_audit_chain(resource=resource, resource_id=resource_id)
        )
        return _end_of(chain)

    async def _groups(self, resource: AuditedTable) -> AsyncIterator[Rows]:
        """Yield all rows, session by session or task by task; of a long one, a page at a time."""
        chain, place = b"", b"" if resource is AuditedTable.TOOL_EXECUTIONS else 0
        while True:
            if resource is AuditedTable.EVENTS:
                page = await self._run(
                    self._sql.list_audited_events(
                        after_chain=chain, after_position=place, limit=MAX_PAGE
                    )
                )
            else:
                page = await self._run(
                    self._sql.list_audited_tool_executions(
                        after_chain=chain, after_row=place, limit=MAX_PAGE
                    )
                )
            for _, group in groupby(page, key=itemgetter(0)):
                yield list(group)
            if len(page) < MAX_PAGE:
                return
            chain, place = page[-1][:2]

    async def _chains(self, resource: AuditedTable) -> AsyncIterator[str]:
        """Yield the session or task of each chain."""
        after = b""
        while True:
            page = await self._run(
                self._sql.list_chained(resource=resource, after_chain=after, limit=MAX_PAGE)
            )
            for (resource_id,) in page:
                yield _readable(resource_id)
            if len(page) < MAX_PAGE:
                return
            after = page[-1][0]

    async def _checkpoints(self) -> AsyncIterator[tuple[str, Rows]]:
        """Yield the digest of each checkpoint, and what it noted, the oldest first."""
        digest = ""
        noted: Rows = []
        after: tuple[Any, ...] = (0, "", "")
        while True:
            page = await self._run(
                self._sql.list_audit_checkpoints(
                    after_checkpoint=after[0],
                    after_resource=after[1],
                    after_place=after[2],
                    limit=MAX_PAGE,
                )
            )
            for row in page:
                if noted and noted[0][0] != row[0]:
                    digest = await off_loop(partial(digest_of, digest), noted)
                    yield digest, noted
                    noted = []
                noted.append(row)
            if len(page) < MAX_PAGE:
                break
            after = page[-1][:3]
        if noted:
            yield await off_loop(partial(digest_of, digest), noted), noted

    async def _marks(self, checkpoint: str) -> Marks:
        """Return what the checkpoints up to `checkpoint` noted."""
        codec.expect("checkpoint", checkpoint, str, "the digest of a checkpoint")
        marks: Marks = defaultdict(dict)
        if checkpoint == digest_of("", ()):
            return marks
        async for digest, noted in self._checkpoints():
            await off_loop(partial(_note, marks), noted)
            if digest == checkpoint:
                return marks
        raise InvalidValue(
            None, "checkpoint", "is none of this store's, or what it noted was rewritten"
        )


_WRONG_TYPE = (AttributeError, TypeError, ValueError)
_NOT_OF_ITS_TYPE = "a value is not of its column's type"


async def _add(judge: Judge, rows: Rows) -> tuple[Judge | None, Findings]:
    """Let the next rows of a chain be checked, unless they hold what cannot be hashed."""
    try:
        await off_loop(judge.add, rows)
    except _WRONG_TYPE:
        resource = AuditedTable(judge.resource)
        return None, [_unreadable(resource, judge.resource_id, _NOT_OF_ITS_TYPE)]
    return judge, []


def _judge(resource: AuditedTable, resource_id: str, end: End | None, marks: Marks) -> Judge:
    judge = EventsJudge if resource is AuditedTable.EVENTS else ToolExecutionsJudge
    return judge(resource_id, end, marks.get((resource, resource_id), {}))


def _note(marks: Marks, noted: Rows) -> None:
    for _, resource, resource_id, length, last in noted:
        marks[resource, resource_id][length] = last


def _end_of(chain: AuditChain | None) -> End | None:
    if chain is None:
        return None
    return End(chain.unchained, chain.length, chain.last, chain.purged, chain.base)


def _unreadable(resource: AuditedTable, resource_id: str, why: StoreCorrupt | str) -> Finding:
    row_id = why.row_id if isinstance(why, StoreCorrupt) else None
    return Finding(resource.value, resource_id, row_id, "unreadable", str(why))


def _readable(text: bytes | None) -> str:
    return "" if text is None else text.decode(errors="replace")


def _is_id(text: str) -> bool:
    return len(text) == 36 and all(character in "0123456789abcdef-" for character in text)
