"""The trail of checkpoints: whether each follows the one before, and covers what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastore.audit.links import Finding
from metastore.audit.reading import NO_CHECKPOINT, AuditCheckpoint, Source
from metastore.paging import MAX_PAGE
from metastore.sealing import is_signed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.audit.reading import Findings, Run
    from metastore.statement_types import AuditChainsStatements

__all__ = ["CheckpointTrail"]


class CheckpointTrail(Source):
    """Follows the checkpoints from the first on, and the entries that they cover.

    Attributes:
        count: how many checkpoints there are, and how many of them are `signed`.
    """

    def __init__(
        self,
        run: Run,
        sql: AuditChainsStatements,
        honest_schemas: Callable[[], Awaitable[frozenset[str]]],
        asked: list[str],
        since: str | None,
        verify_key: str | None,
    ) -> None:
        super().__init__(run, sql)
        self._honest_schemas = honest_schemas
        self._asked = asked
        self._since = since
        self._key = verify_key
        self.findings: Findings = []
        self.count = self.signed = 0

    async def follow(self) -> AuditCheckpoint:
        """Check every checkpoint; return the last of those that were asked for."""
        [(_, entries, _)] = await self._run(self._sql.get_audit_extent())
        honest: frozenset[str] | None = None
        before, proved = NO_CHECKPOINT, NO_CHECKPOINT
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
                    honest = await self._honest_schemas()
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
