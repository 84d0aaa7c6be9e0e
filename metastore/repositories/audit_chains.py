"""audit_chains: whether events and tool executions are what the store wrote."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from metastore import codec, migrations
from metastore.audit.links import Finding
from metastore.audit.reading import (
    NO_CHECKPOINT,
    AuditCheckpoint,
    AuditedTable,
    Findings,
    Source,
    ids_of,
    text_of,
)
from metastore.audit.trail import CheckpointTrail
from metastore.audit.verification import TableAudit
from metastore.codec import Id, Row, new_id, timestamp
from metastore.errors import InvalidValue, StoreCorrupt
from metastore.paging import DEFAULT_PAGE, MAX_PAGE, Page, checked_limit
from metastore.repositories.base import TableRepository
from metastore.sealing import Signature, Signer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from metastore.statement_types import (
        AuditChainsStatements,
        DeleteAuditChangeRow,
        NoteAuditHeadRow,
    )

__all__ = ["AuditChain", "AuditChains", "AuditReport", "AuditedTable", "AuditedTableName", "Purge"]

PIECE = 64
"""The most chains that one transaction of a checkpoint notes: a few milliseconds."""

BEHIND_EVERY_RUN = "~"
"""Sorts behind the id of every run."""

Ids = list[str]


AuditedTableName = Literal["events", "tool_executions"]
"""The same as `AuditedTable`, as text, so that a type checker sees a misspelt one."""


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


class AuditChains(TableRepository[AuditChain]):
    """The chains of events and tool executions."""

    table = "audit_chains"
    row_type = AuditChain
    key = ("resource", "resource_id")
    _sql: AuditChainsStatements

    async def get(self, resource: AuditedTable | AuditedTableName, resource_id: Id) -> AuditChain:
        """Return the chain of a session's events or a task's tool executions.

        Raises:
            NotFound: nothing was ever chained there.
            InvalidValue: `resource` or `resource_id` is invalid.
        """
        return await self._one(
            self._sql.get_audit_chain(resource=resource, resource_id=resource_id), resource_id
        )

    async def list(
        self,
        resource: AuditedTable | AuditedTableName,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[AuditChain, str]:
        """Return a page of the chains of a table, stubs among them.

        Raises:
            InvalidValue: `resource`, `after` or `limit` is invalid.
        """
        call = self._sql.list_audit_chains(
            resource=resource, after_place=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, lambda row: row.resource_id)

    @property
    def _source(self) -> Source:
        return Source(self._run, self._sql)

    async def checkpoint(self, *, since: str | None = None, signer: Signer | None = None) -> str:
        """Record every chain that has changed, and return a digest of all, to be kept elsewhere.

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
        made = NO_CHECKPOINT._replace(
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
            rows: list[DeleteAuditChangeRow] = [{"task_id": task_id} for task_id in ids_of(page)]
            await self._run_all(self._sql.delete_audit_change.many(rows))

    async def _changed(
        self, before: AuditCheckpoint, position: int, entry: int
    ) -> AsyncIterator[tuple[AuditedTable, Ids]]:
        """Yield the chains that may have changed since a checkpoint, page by page."""
        after: Any = before.entry
        while page := await self._source.entries(after, entry):
            after = page[-1][0]
            for resource in AuditedTable:
                of_resource = [(row[3],) for row in page if text_of(row[2]) == resource]
                yield resource, ids_of(of_resource)
        # Before the first checkpoint every chain has an entry since.
        after = before.position if before.number else position
        while page := await self._run(
            self._sql.list_changed_sessions(
                after_position=after, until_position=position, limit=MAX_PAGE
            )
        ):
            after = max(last for _, last in page)
            yield AuditedTable.EVENTS, ids_of(page)
        after = b""
        while page := await self._run(
            self._sql.list_changed_tasks(after_chain=after, limit=MAX_PAGE)
        ):
            after = page[-1][0]
            yield AuditedTable.TOOL_EXECUTIONS, ids_of(page)

    async def _latest(self) -> AuditCheckpoint:
        rows = await self._run(self._sql.get_latest_audit_checkpoint())
        return AuditCheckpoint(*rows[0]) if rows else NO_CHECKPOINT

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

    async def _honest_schemas(self) -> frozenset[str]:
        return await asyncio.to_thread(migrations.fingerprints, self._scope.columns.dialect)

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
        proved = NO_CHECKPOINT
        try:
            findings += await self.schema_findings()
            trail = CheckpointTrail(
                self._run, self._sql, self._honest_schemas, asked, since, verify_key
            )
            proved = await trail.follow()
            findings += trail.findings
            checkpoints, signed = trail.count, trail.signed
        except StoreCorrupt as damage:
            findings.append(Finding("audit_checkpoints", "", None, "unreadable", str(damage)))
        chains = rows = 0
        for resource in AuditedTable:
            audit = TableAudit(self._run, self._sql, resource)
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
                    key = (text_of(resource), text_of(resource_id))
                    purges[key] = Purge(*key, purged, text_of(created_at))
        return list(purges.values())


def _expect_hexadecimal(name: str, text: object) -> None:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise InvalidValue(
            None, name, "must be 64 hexadecimal digits", value_type=type(text).__name__
        )
