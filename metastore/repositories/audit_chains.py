"""audit_chains: whether events and tool executions are what the store wrote."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from metastore.audit import End, Finding, check_events, check_tool_executions, digest_of
from metastore.codec import Id, Row
from metastore.errors import InvalidValue, StoreCorrupt
from metastore.paging import FIRST_ID, MAX_PAGE, Page, checked_limit, page_of
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from metastore.backends.base import Values

__all__ = ["AuditChain", "AuditChains", "AuditReport", "AuditedTable"]

Rows = list["Values"]
"""The rows of one chain as they are in the file."""

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
                resource=resource, after_place=after or FIRST_ID, limit=checked_limit(limit)
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
        not even as a whole. The rows of one session or task are held in memory at a time.

        Raises:
            InvalidValue: no checkpoint has this digest; what it noted was rewritten, if it was
                ever given out.
        """
        marks = await self._marks(checkpoint) if checkpoint is not None else {}
        findings: Findings = []
        chains = rows = 0
        for resource in AuditedTable:
            seen: set[str] = set()
            try:
                async for resource_id, found in self._groups(resource):
                    seen.add(resource_id)
                    rows += len(found)
                    noted = marks.get((resource, resource_id), {})
                    findings += await self._faults(resource, resource_id, found, noted)
            except StoreCorrupt as damage:
                findings.append(_unreadable(resource, "", damage))
            try:
                async for resource_id in self._chains(resource):
                    if resource_id not in seen:
                        seen.add(resource_id)
                        noted = marks.get((resource, resource_id), {})
                        findings += await self._faults(resource, resource_id, [], noted)
            except StoreCorrupt as damage:
                findings.append(_unreadable(resource, "", damage))
            chains += len(seen)
            findings += [
                Finding(resource.value, resource_id, None, "removed")
                for (of, resource_id), noted in marks.items()
                if of == resource and resource_id not in seen and max(noted) > 0
            ]
        return AuditReport(chains, rows, findings)

    async def _faults(
        self,
        resource: AuditedTable,
        resource_id: str,
        rows: Rows,
        marks: dict[int, str],
    ) -> Findings:
        """Return the first fault of a chain, if it has one."""
        try:
            end = await self._end(resource, resource_id) if _is_id(resource_id) else None
            if _judge(resource, resource_id, rows, end, marks) is None:
                return []
            # A row may have come in between: what is read at once decides.
            finding = await self._second_look(resource, resource_id, rows, marks)
        except StoreCorrupt as damage:
            finding = _unreadable(resource, resource_id, damage)
        return [finding] if finding else []

    async def _end(self, resource: AuditedTable, resource_id: str) -> End | None:
        chain = await self._find(
            self._sql.get_audit_chain(resource=resource, resource_id=resource_id)
        )
        if chain is None:
            return None
        return End(chain.unchained, chain.length, chain.last, chain.purged, chain.base)

    async def _second_look(
        self, resource: AuditedTable, resource_id: str, rows: Rows, marks: dict[int, str]
    ) -> Finding | None:
        if not _is_id(resource_id):
            return _judge(resource, resource_id, rows, None, marks)
        if resource is AuditedTable.EVENTS:
            call = self._sql.list_audited_events_of(resource_id=resource_id)
        else:
            call = self._sql.list_audited_tool_executions_of(resource_id=resource_id)
        found = await self._run(call)
        end = found[0][: len(End._fields)]
        rows = [row[len(End._fields) :] for row in found]
        return _judge(
            resource,
            resource_id,
            [row for row in rows if row[0] is not None],
            None if end[0] is None else End(*end),
            marks,
        )

    async def _groups(self, resource: AuditedTable) -> AsyncIterator[tuple[str, Rows]]:
        """Yield the rows of each session or task."""
        group: Rows = []
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
            for row in page:
                if group and group[0][0] != row[0]:
                    yield _readable(group[0][0]), group
                    group = []
                group.append(row)
            if len(page) < MAX_PAGE:
                break
            chain, place = page[-1][:2]
        if group:
            yield _readable(group[0][0]), group

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
                    digest = digest_of(digest, noted)
                    yield digest, noted
                    noted = []
                noted.append(row)
            if len(page) < MAX_PAGE:
                break
            after = page[-1][:3]
        if noted:
            yield digest_of(digest, noted), noted

    async def _marks(self, checkpoint: str) -> Marks:
        """Return what the checkpoints up to `checkpoint` noted."""
        marks: Marks = defaultdict(dict)
        if checkpoint == digest_of("", ()):
            return marks
        async for digest, noted in self._checkpoints():
            for _, resource, resource_id, length, last in noted:
                marks[resource, resource_id][length] = last
            if digest == checkpoint:
                return marks
        raise InvalidValue(
            None, "checkpoint", "is none of this store's, or what it noted was rewritten"
        )


def _judge(
    resource: AuditedTable,
    resource_id: str,
    rows: Rows,
    end: End | None,
    marks: dict[int, str],
) -> Finding | None:
    check = check_events if resource is AuditedTable.EVENTS else check_tool_executions
    if not rows and not _is_id(resource_id):
        return _unreadable(resource, resource_id, "the chain's id is not a UUID")
    try:
        return check(resource_id, rows, end, marks)
    except (AttributeError, TypeError, ValueError):
        return _unreadable(resource, resource_id, "a value is not of its column's type")


def _unreadable(resource: AuditedTable, resource_id: str, why: StoreCorrupt | str) -> Finding:
    row_id = why.row_id if isinstance(why, StoreCorrupt) else None
    return Finding(resource.value, resource_id, row_id, "unreadable", str(why))


def _readable(text: bytes | None) -> str:
    return "" if text is None else text.decode(errors="replace")


def _is_id(text: str) -> bool:
    return len(text) == 36 and all(character in "0123456789abcdef-" for character in text)
