"""audit_chains: whether events and tool executions are what the store wrote."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from enum import StrEnum
from functools import partial
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from metastore import codec, migrations
from metastore.audit import (
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
from metastore.codec import Id, Row, new_id, timestamp
from metastore.errors import InvalidValue, StoreCorrupt
from metastore.paging import MAX_PAGE, Page, checked_limit, page_of
from metastore.repositories.base import TableRepository
from metastore.rows import FEW_ROWS
from metastore.sealing import Signature, Signer, is_signed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from metastore.backends.base import Values
    from metastore.statement_types import (
        AuditChainsStatements,
        DeleteAuditChangeRow,
        NoteAuditHeadRow,
    )
    from metastore.statements import Call

__all__ = ["AuditChain", "AuditChains", "AuditReport", "AuditedTable", "Purge"]

Rows = list["Values"]
"""Rows of one chain as they are in the file."""

FIRST_POSITION = -(2**63)
"""Before every position, also one that was tampered with."""

PAGE_BYTES = 4 << 20
"""The bytes of text at which a page of an audit ends; its last row may exceed it."""

PIECE = 64
"""The most chains that one transaction of a checkpoint notes: a few milliseconds."""

BEHIND_EVERY_RUN = "~"
"""Sorts behind the id of every run."""

SMALL = 1 << 16
"""Bytes that are hashed sooner than a thread could be asked to."""

Findings = list[Finding]

Run: TypeAlias = "Callable[[Call], Awaitable[Rows]]"

Ids = list[str]


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


class Purge(msgspec.Struct, frozen=True):
    """What was purged of a chain since a checkpoint.

    Attributes:
        purged: how many of its links were gone after that.
    """

    resource: str
    resource_id: str
    purged: int
    purged_at: str


Purges = list[Purge]


class AuditReport(msgspec.Struct, frozen=True):
    """What a verification found.

    Attributes:
        chains: how many chains were checked.
        rows: how many rows.
        findings: what is wrong with the schema and the checkpoints, and the first fault of each
            chain that has one.
        checkpoints: how many checkpoints were checked, and how many of them are `signed`.
        purges: what was purged since the last of the digests that were asked for. Whoever can
            write to the file can purge: compare it with what you know to have been deleted.
    """

    chains: int
    rows: int
    findings: list[Finding]
    checkpoints: int = 0
    signed: int = 0
    purges: list[Purge] = []


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


_NONE = AuditCheckpoint(0, "", "", "", 0, 0, 0, 0, 0, "", "", "", "", None, None)


class _Noted(NamedTuple):
    """The hash over what a run noted, and what it adds up to."""

    heads: int
    hash: str
    chains: int
    links: int


class _Source:
    """What an audit reads of chains, entries and checkpoints."""

    def __init__(self, run: Run, sql: AuditChainsStatements) -> None:
        self._run = run
        self._sql = sql

    async def noted(self, run: str, number: int) -> _Noted:
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
        return _Noted(heads, digest.hexdigest(), chains, links)

    async def entries_hash(self, after: int, until: int) -> str:
        """Return the hash over the entries behind `after`, up to `until`."""
        digest = sha256()
        while page := await self.entries(after, until):
            await _hash_rows(digest.update, page)
            after = page[-1][0]
        return digest.hexdigest()

    async def entries(self, after: int, until: int) -> Rows:
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
        return Chain(state, list(map(_head, heads)), list(map(_entry, entries)))

    async def state(self, resource: AuditedTable, resource_id: str) -> State | None:
        rows = await self._run(
            self._sql.list_chain_states_of(resource=resource, resource_id=resource_id)
        )
        return _state(rows[0]) if rows else None

    async def second_look(
        self, resource: AuditedTable, resource_id: str, unchained_until: int
    ) -> Finding | None:
        """Check a chain again, up to a state that is read after its rows.

        Links are only ever added, so that all up to the state read before the rows are there. It
        starts again if the chain is purged meanwhile.
        """
        while True:
            before = await self.chain(resource, resource_id)
            judge = _judge(resource, resource_id, before, unchained_until)
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
            await _off_loop(judge.add, page)
            if _is_last(page, limit):
                break
            most = most and most - len(page)
            most_at_once = _next_limit(most_at_once, page)
        return place


class AuditChains(TableRepository[AuditChain]):
    """The chains of events and tool executions."""

    table = "audit_chains"
    row_type = AuditChain
    key = ("resource", "resource_id")
    _sql: AuditChainsStatements

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

    @property
    def _source(self) -> _Source:
        return _Source(self._run, self._sql)

    async def checkpoint(self, *, since: str | None = None, signer: Signer | None = None) -> str:
        """Note every chain that has changed, and return a digest of all, to be kept elsewhere.

        Where nothing has changed since the last checkpoint it is that one's digest. The chains are
        noted piece by piece, so that other writers are served in between.

        Args:
            since: The digest of an earlier checkpoint, which must be an ancestor of this one.
            signer: What signs the digest, with a key that is replaced each time.

        Raises:
            InvalidValue: `since` is no ancestor, or the last checkpoint was rewritten.
        """
        if since is not None:
            _expect_hexadecimal("since", since)
        if signer is not None:
            codec.expect("signer", signer, Signer, "a Signer")
        while True:
            before = await self._latest()
            if before.number and before.computed() != before.digest:
                raise InvalidValue(
                    None, "checkpoint", f"{before.number} was rewritten; run metastore audit verify"
                )
            made = await self._made(before, signer)
            if made is not None:
                break
        if since is not None and since not in [it.digest async for it in self._ancestry(made)]:
            raise InvalidValue(None, "since", "is no ancestor of this checkpoint")
        return made.digest

    async def _made(self, before: AuditCheckpoint, signer: Signer | None) -> AuditCheckpoint | None:
        """Return the checkpoint after `before`; None if another was made meanwhile."""
        [(position, entry, _)] = await self._run(self._sql.get_audit_extent())
        schema_hash = await self._schema_hash()
        now = self._now()
        run = new_id()
        async for resource, ids in self._changed(before, position, entry):
            for start in range(0, len(ids), PIECE):
                rows: list[NoteAuditHeadRow] = [
                    {
                        "run": run,
                        "number": before.number + 1,
                        "resource": resource,
                        "resource_id": resource_id,
                    }
                    for resource_id in ids[start : start + PIECE]
                ]
                await self._run_all(self._sql.note_audit_head.many(rows))
        noted = await self._source.noted(run, before.number + 1)
        if (
            before.number
            and not noted.heads
            and (entry, schema_hash) == (before.entry, before.schema_hash)
            and (signer is None or before.signature is not None)
        ):
            return before
        made = _NONE._replace(
            number=before.number + 1,
            previous=before.digest,
            run=run,
            position=position,
            entry=entry,
            chains=before.chains + noted.chains,
            links=before.links + noted.links,
            heads=noted.heads,
            heads_hash=noted.hash,
            entries_hash=await self._source.entries_hash(before.entry, entry),
            schema_hash=schema_hash,
            created_at=timestamp(now),
        )
        made = made._replace(digest=made.computed())
        signature: Signature | None = None
        if signer is not None:
            for row in await self._run(self._sql.get_latest_audit_signature()):
                # A process that died behind its checkpoint has left the key of that one.
                await asyncio.to_thread(signer.advance, Signature(*row))
            signature = await asyncio.to_thread(signer.sign, made.digest)
            made = made._replace(next_key=signature.next_key, signature=signature.signature)
        written = await self._run(
            self._sql.create_audit_checkpoint(
                number=made.number,
                digest=made.digest,
                previous=made.previous,
                run=run,
                position=position,
                entry=entry,
                chains=made.chains,
                links=made.links,
                heads=made.heads,
                heads_hash=made.heads_hash,
                entries_hash=made.entries_hash,
                schema_hash=schema_hash,
                now=now,
                next_key=made.next_key,
                signature=made.signature,
            )
        )
        if not written:
            return None
        if signer is not None and signature is not None:
            await asyncio.to_thread(signer.advance, signature)
        for after, until in ((before.run, run), (run, BEHIND_EVERY_RUN)):
            left_behind = self._sql.delete_audit_heads(
                number=made.number, after_run=after, until_run=until, limit=PIECE
            )
            while await self._run(left_behind):
                pass
        await self._settle()
        return made

    async def _settle(self) -> None:
        """Forget which tasks had changed, if a checkpoint has them as they are."""
        after = b""
        while page := await self._run(self._sql.list_changed_tasks(after_chain=after, limit=PIECE)):
            after = page[-1][0]
            rows: list[DeleteAuditChangeRow] = [{"task_id": task_id} for task_id in _ids(page)]
            await self._run_all(self._sql.delete_audit_change.many(rows))

    async def _changed(
        self, before: AuditCheckpoint, position: int, entry: int
    ) -> AsyncIterator[tuple[AuditedTable, Ids]]:
        """Yield the chains that may have changed since a checkpoint, page by page."""
        after: Any = before.entry
        while page := await self._source.entries(after, entry):
            after = page[-1][0]
            for resource in AuditedTable:
                of_resource = [(row[3],) for row in page if _text(row[2]) == resource]
                yield resource, _ids(of_resource)
        # Before the first checkpoint every chain has an entry since.
        after = before.position if before.number else position
        while page := await self._run(
            self._sql.list_changed_sessions(
                after_position=after, until_position=position, limit=MAX_PAGE
            )
        ):
            after = max(last for _, last in page)
            yield AuditedTable.EVENTS, _ids(page)
        after = b""
        while page := await self._run(
            self._sql.list_changed_tasks(after_chain=after, limit=MAX_PAGE)
        ):
            after = page[-1][0]
            yield AuditedTable.TOOL_EXECUTIONS, _ids(page)

    async def _latest(self) -> AuditCheckpoint:
        rows = await self._run(self._sql.get_latest_audit_checkpoint())
        return AuditCheckpoint(*rows[0]) if rows else _NONE

    async def _ancestry(self, until: AuditCheckpoint) -> AsyncIterator[AuditCheckpoint]:
        """Yield the checkpoints up to one, the oldest first, as far as each follows the last.

        Raises:
            InvalidValue: one does not.
        """
        digest, after = "", 0
        while page := await self._run(
            self._sql.list_audit_checkpoints(after_number=after, limit=MAX_PAGE)
        ):
            for row in page:
                checkpoint = AuditCheckpoint(*row)
                if checkpoint.previous != digest or checkpoint.computed() != checkpoint.digest:
                    raise InvalidValue(
                        None, "checkpoint", f"{checkpoint.number} does not follow the one before"
                    )
                digest, after = checkpoint.digest, checkpoint.number
                yield checkpoint
                if checkpoint.number == until.number:
                    return

    async def _schema_hash(self) -> str:
        rows = await self._run(self._sql.list_schema())
        return await asyncio.to_thread(migrations.fingerprint, self._scope.columns.dialect, rows)

    async def schema_findings(self) -> Findings:
        """Return what in the schema is not as the migrations make it: a planted trigger, say."""
        rows = await self._run(self._sql.list_schema())
        differences = await asyncio.to_thread(
            migrations.differences, self._scope.columns.dialect, rows
        )
        kinds = {"extra": "inserted", "missing": "removed"}
        return [
            Finding("schema", it.name, None, kinds.get(it.kind, "edited"), str(it))
            for it in differences
        ]

    async def verify(
        self,
        *,
        checkpoint: str | Iterable[str] | None = None,
        since: str | None = None,
        verify_key: str | None = None,
    ) -> AuditReport:
        """Check the schema, every checkpoint and every chain, beside the store's other work.

        What cannot be read is a finding too, and the rest is checked all the same.

        With the digest of a `checkpoint` it also proves that nothing before that was rewritten,
        not even as a whole. The rows are read and checked a page at a time.

        Args:
            checkpoint: The digest of a checkpoint, or several.
            since: The digest of an earlier one, which must be an ancestor of the `checkpoint`s,
                or of the newest if there are none.
            verify_key: The public key of the first signature. The newest checkpoint must be
                signed, and every signature must be by the key that the one before it named.

        Raises:
            InvalidValue: a digest or key is malformed.
        """
        if checkpoint is None or isinstance(checkpoint, str):
            asked = [] if checkpoint is None else [checkpoint]
        else:
            asked = codec.listed(None, "checkpoint", checkpoint, "digests", kind=str)
        for digest in asked:
            _expect_hexadecimal("checkpoint", digest)
        if since is not None:
            _expect_hexadecimal("since", since)
        if verify_key is not None:
            _expect_hexadecimal("verify_key", verify_key)
        findings: Findings = []
        checkpoints = signed = 0
        proved = _NONE
        try:
            findings += await self.schema_findings()
            trail = _Trail(
                self._run, self._sql, self._scope.columns.dialect, asked, since, verify_key
            )
            proved = await trail.follow()
            findings += trail.findings
            checkpoints, signed = trail.count, trail.signed
        except StoreCorrupt as damage:
            findings.append(Finding("audit_checkpoints", "", None, "unreadable", str(damage)))
        chains = rows = 0
        for resource in AuditedTable:
            audit = _Audit(self._run, self._sql, resource)
            await audit.run()
            findings += audit.findings
            chains += audit.chains
            rows += audit.rows
        purges = await self._purges(proved.entry) if asked else []
        return AuditReport(chains, rows, findings, checkpoints, signed, purges)

    async def _purges(self, after: int) -> Purges:
        """Return the last purge of each chain behind an entry."""
        purges: dict[tuple[str, str], Purge] = {}
        [(_, until, _)] = await self._run(self._sql.get_audit_extent())
        while page := await self._source.entries(after, until):
            after = page[-1][0]
            for _, kind, resource, resource_id, _, _, purged, created_at in page:
                if kind == b"purge":
                    key = (_text(resource), _text(resource_id))
                    purges[key] = Purge(*key, purged, _text(created_at))
        return list(purges.values())


class _Trail(_Source):
    """Follows the checkpoints from the first on, and the entries that they cover.

    Attributes:
        count: how many checkpoints there are, and how many of them are `signed`.
    """

    def __init__(
        self,
        run: Run,
        sql: AuditChainsStatements,
        dialect: str,
        asked: list[str],
        since: str | None,
        verify_key: str | None,
    ) -> None:
        super().__init__(run, sql)
        self._dialect = dialect
        self._asked = asked
        self._since = since
        self._key = verify_key
        self.findings: Findings = []
        self.count = self.signed = 0

    async def follow(self) -> AuditCheckpoint:
        """Check every checkpoint; return the last of those that were asked for."""
        [(_, entries, _)] = await self._run(self._sql.get_audit_extent())
        honest: frozenset[str] | None = None
        before, proved = _NONE, _NONE
        numbers: dict[str, int] = {}
        while page := await self._run(
            self._sql.list_audit_checkpoints(after_number=before.number, limit=MAX_PAGE)
        ):
            for row in page:
                checkpoint = AuditCheckpoint(*row)
                fault = await self._fault(checkpoint, before)
                await self._check_entries(before.entry, checkpoint.entry)
                if fault:
                    self._find(checkpoint.number, "rewritten", fault)
                if honest is None:
                    honest = await asyncio.to_thread(migrations.fingerprints, self._dialect)
                if checkpoint.schema_hash not in honest:
                    detail = f"it was not as any migrations make it at checkpoint {checkpoint[0]}"
                    self.findings.append(Finding("schema", "", None, "edited", detail))
                self._check_signature(checkpoint)
                self.count += 1
                if checkpoint.digest in self._asked:
                    proved = checkpoint
                numbers[checkpoint.digest] = checkpoint.number
                numbers.setdefault(checkpoint.computed(), checkpoint.number)
                before = checkpoint
        await self._check_entries(before.entry, entries)
        for digest in self._asked:
            if digest not in numbers:
                detail = "no checkpoint has this digest: it was rewritten, or the file is older"
                self.findings.append(Finding("audit_checkpoints", digest, None, "unknown", detail))
        if self._since is not None:
            latest = min((numbers.get(it, 0) for it in self._asked), default=before.number)
            if not 0 < numbers.get(self._since, 0) <= latest:
                detail = "it is no ancestor of the checkpoint"
                self.findings.append(
                    Finding("audit_checkpoints", self._since, None, "unknown", detail)
                )
        if self._key is not None and not before.signature:
            self._find(before.number, "unsigned", "the newest checkpoint is not signed")
        return proved

    async def _fault(self, checkpoint: AuditCheckpoint, before: AuditCheckpoint) -> str:
        """Return why a checkpoint is not what was made after `before`; nothing if it is."""
        if (checkpoint.number, checkpoint.previous) != (before.number + 1, before.digest):
            return "it does not follow the checkpoint before"
        noted = await self.noted(checkpoint.run, checkpoint.number)
        told = (checkpoint.heads, checkpoint.heads_hash)
        totals = (checkpoint.chains - before.chains, checkpoint.links - before.links)
        if (noted.heads, noted.hash) != told or (noted.chains, noted.links) != totals:
            return "the chains that it noted are not what it covers"
        if checkpoint.entry < before.entry:
            return "it ends before the checkpoint before"
        if await self.entries_hash(before.entry, checkpoint.entry) != checkpoint.entries_hash:
            return "the entries up to it are not what it covers"
        return "" if checkpoint.computed() == checkpoint.digest else "its digest does not fit"

    async def _check_entries(self, after: int, until: int) -> None:
        """Find the first entry that is missing."""
        while page := await self.entries(after, until):
            for number, *_ in page:
                if number != after + 1:
                    break
                after = number
            else:
                continue
            break
        if after < until:
            finding = Finding("audit_entries", str(after + 1), None, "removed", "no such entry")
            self.findings.append(finding)

    def _check_signature(self, checkpoint: AuditCheckpoint) -> None:
        if checkpoint.signature is None or checkpoint.next_key is None:
            return
        self.signed += 1
        if self._key is None:
            return
        if not is_signed(self._key, checkpoint.digest, checkpoint.next_key, checkpoint.signature):
            self._find(checkpoint.number, "unsigned", "its signature is not by the key in turn")
        self._key = checkpoint.next_key

    def _find(self, number: int, what: str, detail: str) -> None:
        self.findings.append(Finding("audit_checkpoints", str(number), None, what, detail))


class _Audit(_Source):
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
        resource_id = _text(chain_id)
        self.chains += 1
        judge: Judge | None = None
        chain = Chain(None, [], [])
        try:
            chain = Chain(
                None,
                [_head(row) for row in await heads.take(chain_id)],
                [_entry(row) for row in await entries.take(chain_id)],
            )
            for row in await states.take(chain_id):
                chain = chain._replace(state=_state(row))
            judge = _judge(self._resource, resource_id, chain, self._unchained_until)
        except _WRONG_TYPE:
            self._unreadable(resource_id, _NOT_OF_ITS_TYPE)
        while page := await rows.take_page(chain_id):
            self.rows += len(page)
            if judge is None:
                continue
            try:
                await _off_loop(judge.add, page)
            except _WRONG_TYPE:
                self._unreadable(resource_id, _NOT_OF_ITS_TYPE)
                judge = None
        if not _is_id(resource_id):
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
            limit = _next_limit(self._limit, self._page)
            self._page, self._at, self._limit = [], 0, limit
            if self._is_last:
                self._ended = True
                return None
            try:
                self._page = await self._run(self._call(self._after, limit))
            except StoreCorrupt as damage:
                self._damaged(damage)
            self._ended = not self._page
            self._is_last = _is_last(self._page, limit)
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


_WRONG_TYPE = (AttributeError, TypeError, ValueError)
_NOT_OF_ITS_TYPE = "a value is not of its column's type"


def _expect_hexadecimal(name: str, text: object) -> None:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise InvalidValue(
            None, name, "must be 64 hexadecimal digits", value_type=type(text).__name__
        )


def _judge(resource: AuditedTable, resource_id: str, chain: Chain, unchained_until: int) -> Judge:
    judge = EventsJudge if resource is AuditedTable.EVENTS else ToolExecutionsJudge
    return judge(resource_id, chain, unchained_until)


def _state(row: Values) -> State:
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


def _head(row: Values) -> Head:
    return Head(row[1], _state((row[0], *row[2:], False, False, False)))


def _entry(row: Values) -> Entry:
    _, number, kind, unchained, length, purged, created_at = row
    return Entry(number, kind.decode(), unchained, length, purged, created_at.decode())


async def _off_loop(work: Callable[[Rows], None], rows: Rows) -> None:
    """Work on rows that may be few and large."""
    if len(rows) <= FEW_ROWS and _bytes_of(rows) <= SMALL:
        work(rows)
    else:
        await asyncio.to_thread(work, rows)


def _is_last(page: Rows, limit: int) -> bool:
    """Tell whether nothing was behind a page: beside a busy writer there always is more."""
    return len(page) < limit and _bytes_of(page) < PAGE_BYTES


def _next_limit(limit: int, page: Rows) -> int:
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

    await _off_loop(work, rows)


def _ids(rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """Return the ids in the first column that are ids: others have no chain of the store's."""
    return [text for text in dict.fromkeys(_text(row[0]) for row in rows) if _is_id(text)]


def _maybe(text: bytes | None) -> str | None:
    return None if text is None else text.decode()


def _text(text: bytes | None) -> str:
    return "" if text is None else text.decode(errors="replace")


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None
