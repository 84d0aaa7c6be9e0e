"""Verification of chains: every row, state, entry and head of one table, in one pass."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from metastore.audit.links import Chain, Finding, Judge
from metastore.audit.reading import (
    PAGE_BYTES,
    AuditedTable,
    Source,
    entry_of,
    head_of,
    is_id,
    is_last,
    judge_of,
    next_limit,
    off_loop,
    state_of,
    text_of,
)
from metastore.errors import StoreCorrupt
from metastore.paging import MAX_PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from metastore.audit.reading import Findings, Rows, Run
    from metastore.statement_types import AuditChainsStatements
    from metastore.statements import Call

__all__ = ["TableAudit"]

_WRONG_TYPE = (AttributeError, TypeError, ValueError)
_NOT_OF_ITS_TYPE = "a value is not of its column's type"


class TableAudit(Source):
    """Checks the chains of one table, in the order of their sessions or tasks."""

    def __init__(self, run: Run, sql: AuditChainsStatements, resource: AuditedTable) -> None:
        super().__init__(run, sql)
        self._resource = resource
        self._unchained_until = 0
        self.findings: Findings = []
        self.chains = self.rows = 0

    async def run(self) -> None:
        """Check every chain that has rows, a state, an entry or a head."""
        resource = self._resource
        try:
            [(_, _, self._unchained_until)] = await self._run(self._sql.get_audit_extent())
        except StoreCorrupt as damage:
            self._unreadable("", damage)
        heads = self._stream(
            lambda after, limit: self._sql.list_chain_heads(
                after_chain=after[0], after_number=after[1], resource=resource, limit=limit
            )
        )
        states = self._stream(
            lambda after, limit: self._sql.list_chain_states(
                after_chain=after[0], resource=resource, limit=limit
            )
        )
        entries = self._stream(
            lambda after, limit: self._sql.list_chain_entries(
                after_chain=after[0], after_number=after[1], resource=resource, limit=limit
            )
        )
        rows = self._stream(
            lambda after, limit: (
                self._sql.list_audited_events(
                    after_chain=after[0],
                    after_position=after[1],
                    limit=limit,
                    byte_limit=PAGE_BYTES,
                )
                if resource is AuditedTable.EVENTS
                else self._sql.list_audited_tool_executions(
                    after_chain=after[0],
                    after_row=after[1] or b"",
                    limit=limit,
                    byte_limit=PAGE_BYTES,
                )
            )
        )
        streams = (heads, states, entries, rows)
        while True:
            ids = [it for stream in streams if (it := await stream.next_id()) is not None]
            if not ids:
                return
            await self._check(min(ids), *streams)

    def _stream(self, call: Callable[[Any, int], Call]) -> _Stream:
        return _Stream(self._run, call, partial(self._unreadable, ""))

    async def _check(
        self, chain_id: bytes, heads: _Stream, states: _Stream, entries: _Stream, rows: _Stream
    ) -> None:
        resource_id = text_of(chain_id)
        self.chains += 1
        judge: Judge | None = None
        chain = Chain(None, [], [])
        try:
            chain = Chain(
                None,
                [head_of(row) for row in await heads.take(chain_id)],
                [entry_of(row) for row in await entries.take(chain_id)],
            )
            for row in await states.take(chain_id):
                chain = chain._replace(state=state_of(row))
            judge = judge_of(self._resource, resource_id, chain, self._unchained_until)
        except _WRONG_TYPE:
            self._unreadable(resource_id, _NOT_OF_ITS_TYPE)
        while page := await rows.take_page(chain_id):
            self.rows += len(page)
            if judge is None:
                continue
            try:
                await off_loop(judge.add, page)
            except _WRONG_TYPE:
                self._unreadable(resource_id, _NOT_OF_ITS_TYPE)
                judge = None
        if not is_id(resource_id):
            self._unreadable(resource_id, "the chain's id is not a UUID")
        elif judge is not None:
            await self._judge(judge, chain)

    async def _judge(self, judge: Judge, chain: Chain) -> None:
        """Add the first fault of a chain that was read, if it has one."""
        try:
            finding = judge.verdict(chain)
            if finding is not None:
                # Something may have been written between two reads.
                finding = await self.second_look(
                    self._resource, judge.resource_id, self._unchained_until
                )
        except StoreCorrupt as damage:
            self._unreadable(judge.resource_id, damage)
        except _WRONG_TYPE:
            self._unreadable(judge.resource_id, _NOT_OF_ITS_TYPE)
        else:
            self.findings += [finding] if finding else []

    def _unreadable(self, resource_id: str, why: StoreCorrupt | str) -> None:
        row_id = why.row_id if isinstance(why, StoreCorrupt) else None
        self.findings.append(
            Finding(self._resource.value, resource_id, row_id, "unreadable", str(why))
        )


class _Stream:
    """Rows of one statement, page by page, in the order of the chain in their first column."""

    def __init__(
        self,
        run: Run,
        call: Callable[[Any, int], Call],
        damaged: Callable[[StoreCorrupt], None],
    ) -> None:
        self._run = run
        self._call = call
        self._damaged = damaged
        self._after: Any = (b"", 0)
        self._page: Rows = []
        self._at = 0
        self._limit = MAX_PAGE
        self._ended = self._is_last = False

    async def next_id(self) -> bytes | None:
        """Return the chain of the next row; None behind the last."""
        if self._at == len(self._page) and not self._ended:
            limit = next_limit(self._limit, self._page)
            self._page, self._at, self._limit = [], 0, limit
            if self._is_last:
                self._ended = True
                return None
            try:
                self._page = await self._run(self._call(self._after, limit))
            except StoreCorrupt as damage:
                self._damaged(damage)
            self._ended = not self._page
            self._is_last = is_last(self._page, limit)
            if self._page:
                self._after = self._page[-1][:2]
        return None if self._ended else self._page[self._at][0]

    async def take_page(self, chain_id: bytes) -> Rows:
        """Return the next rows of a chain, as many as are on one page; none behind its last."""
        if await self.next_id() != chain_id:
            return []
        start = self._at
        for _, group in groupby(self._page[start:], key=itemgetter(0)):
            self._at += len(list(group))
            break
        return self._page[start : self._at]

    async def take(self, chain_id: bytes) -> Rows:
        """Return all rows of a chain."""
        rows: Rows = []
        while page := await self.take_page(chain_id):
            rows += page
        return rows
