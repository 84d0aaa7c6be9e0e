"""Every exception that metastore raises.

All of them are a `MetastoreError`, and all of them carry the facts as attributes, so that a
caller decides on data and never on the wording of a message. A driver's own exception never
reaches the caller; where one was the cause, it is the `__cause__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "AlreadyExists",
    "BudgetExceeded",
    "DimensionMismatch",
    "ExportRefused",
    "InvalidReference",
    "InvalidTransition",
    "InvalidValue",
    "JobCancelled",
    "LeaseLost",
    "LeaseUnavailable",
    "LimitExceeded",
    "LimitsMismatch",
    "LockHeld",
    "MetastoreError",
    "MigrationFailed",
    "NotFound",
    "OpenedBeforeFork",
    "PriceUnknown",
    "SchemaOutdated",
    "SchemaTooNew",
    "SecretKeyUnavailable",
    "SecretRejected",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreFailed",
    "StoreFull",
    "StoreIOError",
    "StoreReadOnly",
    "StoreReplaced",
    "TokenRejected",
    "TransactionActive",
    "VersionConflict",
    "WrongLoop",
]


class MetastoreError(Exception):
    """The base of every exception that metastore raises. They can be copied and pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call the constructor with the message alone.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[MetastoreError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> MetastoreError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class NotFound(MetastoreError):
    """No row of `table` has the key that was asked for.

    Attributes:
        table: the table that was searched.
        key: the id or natural key that no row has.
    """

    def __init__(self, table: str, key: object) -> None:
        self.table = table
        self.key = key
        super().__init__(f"{table} has no row {key!r}")


class AlreadyExists(MetastoreError):
    """Another row already has a value that must be unique.

    Attributes:
        table: the table that holds the other row.
        columns: the columns that must be unique together.
    """

    def __init__(self, table: str, columns: Iterable[str]) -> None:
        self.table = table
        self.columns = tuple(columns)
        super().__init__(f"{table} already has a row with this {' and '.join(self.columns)}")


class InvalidReference(MetastoreError):
    """A foreign key names a row that does not exist, or a row cannot be deleted: one names it.

    Attributes:
        table: the table that holds the foreign key.
        column: the column of the foreign key; None if unknown.
        references: the table that it refers to; None if unknown.
        is_needed: whether a row of `references` was to be deleted and is still referenced.
    """

    def __init__(
        self,
        table: str,
        column: str | None = None,
        references: str | None = None,
        *,
        is_needed: bool = False,
    ) -> None:
        self.table = table
        self.column = column
        self.references = references
        self.is_needed = is_needed
        where = f"{table}.{column}" if column else table
        if references is None:
            reason = f"a row that {table} refers to does not exist, or a row of it is still in use"
        elif is_needed:
            reason = f"the row of {references} is still referenced by {where}"
        else:
            reason = f"{where} refers to a row of {references} that does not exist"
        super().__init__(reason)


class InvalidValue(MetastoreError):
    """A value that the store refuses; nothing was stored.

    Attributes:
        table: the table the value was meant for, or None if it was meant for no table.
        column: the column, parameter or constraint that refuses it.
        value_type: the name of the value's Python type, or None if the database refused it.
            The value itself is left out: it may be a secret.
    """

    def __init__(
        self, table: str | None, column: str, reason: str, *, value_type: str | None = None
    ) -> None:
        self.table = table
        self.column = column
        self.reason = reason
        self.value_type = value_type
        where = f"{table}.{column}" if table else column
        got = f" (got {value_type})" if value_type else ""
        super().__init__(f"{where} {reason}{got}")


class DimensionMismatch(InvalidValue):
    """The vector does not have the number of dimensions that its scope has.

    Attributes:
        scope: the scope.
        expected: the number of dimensions of the vectors in the scope.
        actual: the number of dimensions of the refused vector.
    """

    def __init__(self, scope: str, *, expected: int, actual: int) -> None:
        self.scope = scope
        self.expected = expected
        self.actual = actual
        super().__init__(
            "embedding_index",
            "dimensions",
            f"must be {expected}, as for every vector in scope {scope!r}, not {actual}",
        )


_WORK = {
    "step": "start a step",
    "command": "run a command",
    "checkpoint": "take a checkpoint",
    "lock": "lock its project",
    "session": "be used by a session",
    "tool execution": "call a tool",
    "add": "add a task",
    "reserving": "reserve budget",
    "deleted": "be deleted",
    "replaced": "be replaced",
}
"""What a row cannot do, by the kind of work or the state that was asked for."""


class InvalidTransition(MetastoreError):
    """The row's state does not allow the transition, or the work that was asked of it.

    Attributes:
        table: the table of the row. If a parent refuses work, this is the parent's table: starting
            a step of a session that has ended names `sessions`.
        from_state: the state of the row.
        to_state: the state that was asked for, or the kind of work: `step`, `command`, `lock`.
        row: the row as it is now.
    """

    def __init__(
        self, table: str, from_state: str, to_state: str, row: Any, *, is_work: bool = False
    ) -> None:
        self.table = table
        self.from_state = from_state
        self.to_state = to_state
        self.row = row
        noun = table.removesuffix("s").replace("_", " ")
        state, other = (_IN_WORDS.get(it, it) for it in (from_state, to_state))
        if is_work or to_state in _WORK:
            verb = _WORK.get(to_state, f"start a {to_state}")
        elif from_state == to_state:
            super().__init__(f"the {noun} is already {state}")
            return
        else:
            verb = f"become {other}"
        article = "an" if state[0] in "aeiou" else "a"
        super().__init__(f"{article} {state} {noun} cannot {verb}")


_IN_WORDS = {"in_progress": "active", "timeout": "timed-out"}
"""States whose names are no adjectives."""


class VersionConflict(MetastoreError):
    """The row has changed since the caller read it.

    Attributes:
        table: the table of the row.
        expected: the version that the caller had read.
        row: the row as it is now.
    """

    def __init__(self, table: str, expected: int, row: Any) -> None:
        self.table = table
        self.expected = expected
        self.row = row
        super().__init__(f"the row of {table} is no longer at version {expected}")


class LeaseUnavailable(MetastoreError):
    """The worktree is held, retired or has changed since it was read, or none became free in time.

    Or there was no task to claim, and none arrived in time.

    Attributes:
        resource: the table of what was asked for, `worktrees` or `tasks`.
        worktree: the row as it is now; None if any worktree of a repository would have done.
        repository_id: the repository whose worktrees were asked for; None for tasks.
    """

    def __init__(
        self,
        repository_id: str | None = None,
        worktree: Any | None = None,
        *,
        resource: str = "worktrees",
    ) -> None:
        self.resource = str(resource)
        self.repository_id = repository_id
        self.worktree = worktree
        if self.resource == "tasks":
            super().__init__("there is no task to claim")
        elif worktree is None:
            super().__init__(f"no worktree of repository {repository_id} is free")
        elif worktree.state == "retired":
            super().__init__(f"worktree {worktree.id} is retired")
        elif worktree.lease_owner is None:
            super().__init__(
                f"worktree {worktree.id} has changed since it was read: it is free, and at "
                f"version {worktree.version}"
            )
        else:
            super().__init__(
                f"worktree {worktree.id} is held by {worktree.lease_owner!r} "
                f"until {worktree.lease_expires_at}"
            )


class LeaseLost(MetastoreError):
    """The lease or lock expired or went to another holder; what it guarded was not written.

    Attributes:
        resource: the table of the lease, `worktrees`, `project_locks` or `tasks`.
        resource_id: the id of what was leased: of the worktree, the project or the task.
        fencing_number: the number the lease was granted under.
    """

    def __init__(self, resource: str, resource_id: str, fencing_number: int) -> None:
        self.resource = resource
        self.resource_id = resource_id
        self.fencing_number = fencing_number
        held = {
            "worktrees": "the lease on worktree",
            "project_locks": "the lock of project",
            "tasks": "the claim on task",
        }.get(resource, f"the lease on {resource}")
        super().__init__(
            f"{held} {resource_id} with fencing number {fencing_number} is no longer held"
        )


class LockHeld(MetastoreError):
    """Another session holds the project's lock.

    Attributes:
        project_id: the locked project.
        lock: the lock as it is now; None if it was released meanwhile.
    """

    def __init__(self, project_id: str, lock: Any | None) -> None:
        self.project_id = project_id
        self.lock = lock
        held = f" by session {lock.session_id} until {lock.expires_at}" if lock else ""
        super().__init__(f"project {project_id} is locked{held}")


class BudgetExceeded(MetastoreError):
    """The job's budget does not cover the request.

    Attributes:
        job_id: the job.
        limit: what the job may use, in the unit of `resource`.
        spent: what its entries have used.
        reserved: what live reservations hold.
        requested: what was asked for.
        resource: `budget_usd` (Decimal dollars), `max_requests` or `max_minutes`.
    """

    def __init__(
        self, job_id: str, *, resource: str, limit: Any, spent: Any, reserved: Any, requested: Any
    ) -> None:
        self.job_id = job_id
        self.resource = resource
        self.limit = limit
        self.spent = spent
        self.reserved = reserved
        self.requested = requested
        super().__init__(
            f"job {job_id} has a {resource} of {limit}: {spent} spent and {reserved} reserved "
            f"leave no room for {requested}"
        )


class LimitExceeded(MetastoreError):
    """The job would remember more than its limits allow; nothing was stored.

    Attributes:
        job_id: the job.
        limit: the column of memory_limits that sets the limit.
        maximum: what it allows.
        actual: what the write would have needed.
    """

    def __init__(self, job_id: str, *, limit: str, maximum: int, actual: int) -> None:
        self.job_id = job_id
        self.limit = limit
        self.maximum = maximum
        self.actual = actual
        super().__init__(f"job {job_id} has a {limit} of {maximum}; this write needs {actual}")


class ExportRefused(MetastoreError):
    """A file cannot be exported: its path is taken by something that must not be replaced.

    Attributes:
        path: the file's path in the sandbox.
        reason: what is in the way.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path!r} was not exported: {reason}")


class JobCancelled(MetastoreError):
    """The job was cancelled: it starts nothing more, and its agent has to end it.

    Attributes:
        job: the job as it is now.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        super().__init__(f"job {job.id} was cancelled; its status is {job.status}")


class PriceUnknown(MetastoreError):
    """No price list has the price of a model call, so the caller must pass its cost.

    Attributes:
        provider: who was asked.
        model: which model.
        reason: why there is no price.
    """

    def __init__(self, provider: str, model: str, reason: str) -> None:
        self.provider = provider
        self.model = model
        self.reason = reason
        super().__init__(f"the cost of {model!r} at {provider!r} is unknown: {reason}")


class TokenRejected(MetastoreError):
    """The token is not accepted. Unknown, expired, revoked and mistyped ones look the same.

    Attributes:
        scope: the scope that was asked for, or None.
    """

    def __init__(self, scope: str | None = None) -> None:
        self.scope = scope
        super().__init__("the token is not valid for this request")


class SecretKeyUnavailable(MetastoreError):
    """There is no key to encrypt or decrypt a secret with; nothing was stored.

    Attributes:
        key_id: the fingerprint of the key that a secret needs; None if any would do.
    """

    def __init__(self, reason: str, *, key_id: str | None = None) -> None:
        self.key_id = key_id
        super().__init__(reason)


class SecretRejected(MetastoreError):
    """A ciphertext does not belong where it is: it was altered, or comes from another row.

    Attributes:
        key_id: the fingerprint of the key it claims to be encrypted under.
    """

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(f"a ciphertext under key {key_id} was altered, or belongs to another row")


class MigrationFailed(MetastoreError):
    """A migration could not be applied, rolled back or trusted; the database is as it was before.

    Attributes:
        migration_id: the migration.
        path: its file, where one is to blame.
        line: the line of the failed statement in that file, 1-based, or None.
        statement: the failed statement, or None.
    """

    def __init__(
        self,
        migration_id: str,
        reason: str,
        *,
        path: Path | None = None,
        line: int | None = None,
        statement: str | None = None,
    ) -> None:
        self.migration_id = migration_id
        self.reason = reason
        self.path = path
        self.line = line
        self.statement = statement
        where = f"{path}:{line}" if path and line else str(path or migration_id)
        super().__init__(f"{where}: {reason}")


class SchemaOutdated(MetastoreError):
    """The database is older than the code, or not there yet.

    Attributes:
        revision: the newest migration the database has, or None.
        head: the newest migration the code knows.
    """

    def __init__(self, url: str, revision: str | None, head: str) -> None:
        self.url = url
        self.revision = revision
        self.head = head
        state = f"is at {revision}" if revision else "holds no metastore yet"
        super().__init__(
            f"{url} {state}, the code needs {head}; run: metastore migrate upgrade --db {url}"
        )


class LimitsMismatch(MetastoreError):
    """The database's processes hold leases under other limits than the code's.

    Attributes:
        max_ttl: the longest TTL that the database allows.
        clock_skew: how far it lets a clock be wrong.
        code_max_ttl: the longest TTL that the code allows.
        code_clock_skew: how far the code lets a clock be wrong.
    """

    def __init__(
        self, max_ttl: Any, clock_skew: Any, code_max_ttl: Any, code_clock_skew: Any
    ) -> None:
        self.max_ttl = max_ttl
        self.clock_skew = clock_skew
        self.code_max_ttl = code_max_ttl
        self.code_clock_skew = code_clock_skew
        super().__init__(
            f"the database's leases last up to {max_ttl} with clocks wrong by {clock_skew}, the "
            f"code's up to {code_max_ttl} with {code_clock_skew}; install the metastore that "
            "its other processes run"
        )


class SchemaTooNew(MetastoreError):
    """The database has migrations that the code does not know.

    Attributes:
        revision: the newest migration the database has.
        head: the newest migration the code knows.
    """

    def __init__(self, url: str, revision: str, head: str) -> None:
        self.url = url
        self.revision = revision
        self.head = head
        super().__init__(
            f"{url} is at {revision}, the code ends at {head}; install a newer metastore, or with "
            f"that one run: metastore migrate downgrade {head} --db {url}"
        )


class TransactionActive(MetastoreError):
    """The task holds an open transaction and used the store beside it, which would never return.

    Use the transaction's own repositories (`tx.events`, not `store.events`) inside its body.
    """


class StoreBusy(MetastoreError):
    """Another process kept the database locked for longer than the store waits."""


class StoreFull(MetastoreError):
    """The database cannot grow: the disk, a quota or a limit on file sizes leaves no room."""


class StoreIOError(MetastoreError):
    """The operating system failed a read or a write of the database, and not for lack of room.

    The disk may be failing. What was asked for was not stored.
    """


class StoreReadOnly(MetastoreError):
    """The database, its folder or its file system takes no writes."""


class StoreCorrupt(MetastoreError):
    """The file or a row in it is damaged, or the file is not a metastore database.

    Attributes:
        detail: what is wrong.
        path: the file; None if it is the open store's.
        table: the table of the damaged row or of the statement that met the damage, or None.
        row_id: the id of the damaged row, or its key as text where it has no id, or None.
        column: the damaged column, or None.
    """

    def __init__(
        self,
        detail: str,
        *,
        path: Path | str | None = None,
        table: str | None = None,
        row_id: str | None = None,
        column: str | None = None,
    ) -> None:
        self.detail = detail
        self.path = path
        self.table = table
        self.row_id = row_id
        self.column = column
        row = f"row {row_id!r} of {table}" if table and row_id is not None else table
        where = ": ".join(str(it) for it in (path, row, column) if it)
        super().__init__(f"{where}: {detail}" if where else detail)


class StoreReplaced(MetastoreError):
    """A file of the open database was deleted, moved or replaced.

    The store stops: what it wrote from here on, nobody else would see. Open it again, after the
    right file is in its place.

    Attributes:
        path: the file as the store opened it.
        is_missing: whether nothing is there any more; False if it is another file.
    """

    def __init__(self, path: Path | str, *, is_missing: bool) -> None:
        self.path = path
        self.is_missing = is_missing
        what = "was deleted or moved" if is_missing else "was replaced by another file"
        super().__init__(f"{path} {what} while the store was open; open the store again")


class StoreFailed(MetastoreError):
    """The backend met an error that it does not know; that one is the `__cause__`.

    The store goes on: the operations that shared the failed one's batch were undone with it, and
    later ones are unaffected.
    """


class StoreClosed(MetastoreError):
    """The store was closed, or was opened in a parent process before a fork."""


class OpenedBeforeFork(StoreClosed):
    """The database was open in a parent process when this one was forked from it.

    SQLite's locks do not survive a fork, and it does not notice: a child that wrote would lose
    what it wrote, and its parent's. Start workers with `spawn` or `forkserver`, or open the store
    only after the fork.

    Attributes:
        path: the database, or None where it is not known.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = path
        super().__init__(
            f"{path or 'the store'} was open in the parent process when this one was forked: start "
            "workers with spawn or forkserver, or open the store after the fork only"
        )


class WrongLoop(MetastoreError):
    """The store was used from another event loop, or another thread, than it was opened in.

    Nothing was queued. Open a store in each loop: stores on one file work side by side.
    """

    def __init__(self) -> None:
        super().__init__(
            "a store belongs to the event loop it was opened in: open another one in this loop"
        )
