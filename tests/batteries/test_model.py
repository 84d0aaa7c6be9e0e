"""The store against a model in plain dictionaries: every answer, every refusal, every row."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidTransition,
    InvalidValue,
    Lease,
    LeaseLost,
    LeaseUnavailable,
    LockHeld,
    MetadataStore,
    MetastoreError,
    NewEvent,
    NotFound,
    ProjectLock,
    TokenRejected,
)
from metastore.leasing.limits import CLOCK_SKEW, MAX_TTL
from metastore.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import datetime

Values = dict[str, Any]
Table = dict[str, Values]

MINUTE = timedelta(minutes=1)
# Half a minute more than what the clock is moved by, so that its ticks decide nothing.
SPANS = [MINUTE * n + timedelta(seconds=30) for n in (0, 5, 15, 10_000)]
MOVES = [MINUTE * n for n in (1, 1, 3, 10, -10, 13_000, -13_000)]
TOP = 5
"""The largest number that is drawn to choose a row; it stands for one that does not exist."""


class Now:
    """Stands for the time of the operation: known when its answer is."""


class Unknown:
    """Stands for a time of the machine's clock, which a trigger stamps: learned when it is read."""


class Model:
    """What the store must hold."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {
            name: {}
            for name in (
                "repositories", "worktrees", "projects", "sessions", "steps", "commands",
                "artifacts", "events", "debugger_state", "project_locks", "auth_tokens",
            )
        }  # fmt: skip
        self.floors = {"worktrees": 0, "project_locks": 0}
        self.tokens: dict[str, str] = {}

    def __getattr__(self, name: str) -> Table:
        try:
            return self.__dict__["tables"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    def of(self, table: str, **values: Any) -> list[Values]:
        """Return the rows that have these values."""
        rows = self.tables[table].values()
        return [row for row in rows if all(row[name] == values[name] for name in values)]

    def ended(self, session_id: str) -> Values | None:
        """Return the session if it takes no more work."""
        session = self.sessions.get(session_id)
        ends = ("completed", "failed", "cancelled")
        return session if session and session["status"] in ends else None

    def refused_work(self, session_id: str) -> tuple[type[MetastoreError], Values] | None:
        """Return why nothing is added to a session, and the facts, unless it takes work."""
        if session_id not in self.sessions:
            return InvalidReference, {"references": "sessions"}
        if session := self.ended(session_id):
            return InvalidTransition, {"from_state": session["status"], "row": session}
        return None

    def is_retired(self, worktree_id: str | None) -> bool:
        worktree = self.worktrees.get(worktree_id or "")
        return worktree is not None and worktree["state"] == "retired"

    def is_elsewhere(self, worktree_id: str | None, repository_id: str | None) -> bool:
        """Say whether the worktree is one of another repository."""
        worktree = self.worktrees.get(worktree_id or "")
        if worktree is None or repository_id is None:
            return False
        return bool(worktree["repository_id"] != repository_id)

    def drop_lock(self, lock: Values) -> None:
        del self.project_locks[lock["id"]]
        self.floors["project_locks"] = max(self.floors["project_locks"], lock["fencing_number"])

    def drop_session(self, session_id: str) -> None:
        for lock in self.of("project_locks", session_id=session_id):
            self.drop_lock(lock)
        for name in ("steps", "commands", "artifacts", "events", "debugger_state"):
            for row in self.of(name, session_id=session_id):
                del self.tables[name][row["id"]]
        del self.sessions[session_id]


class _Undo(Exception):
    """Raised in a transaction's body, to undo it."""


STATES: dict[str, dict[str, tuple[set[str], str]]] = {
    "sessions": {
        "start": ({"pending"}, "in_progress"),
        "pause": ({"in_progress"}, "paused"),
        "resume": ({"paused"}, "in_progress"),
        "complete": ({"in_progress"}, "completed"),
        "fail": ({"pending", "in_progress", "paused"}, "failed"),
        "cancel": ({"pending", "in_progress", "paused"}, "cancelled"),
    },
    "steps": {
        "start": ({"pending"}, "running"),
        "complete": ({"running"}, "completed"),
        "fail": ({"pending", "running"}, "failed"),
        "skip": ({"pending"}, "skipped"),
    },
    "commands": {
        "start": ({"pending"}, "running"),
        "finish": ({"running"}, "completed"),
        "fail": ({"pending", "running"}, "failed"),
        "time_out": ({"running"}, "timeout"),
        "cancel": ({"pending", "running"}, "cancelled"),
    },
}
GRANTS: list[list[str]] = [[], ["sessions:read"], ["sessions:*"], ["*"]]
OPENS = [set(), {"sessions:read"}, {"sessions:read", "sessions:write"}, {"sessions:read", "sessions:write", "admin"}]  # fmt: skip  # noqa: E501
SCOPES = [None, "sessions:read", "sessions:write", "admin"]


class Operations:
    """One operation for each thing that the store does; `n` chooses rows and values.

    Each predicts the answer, or the error, and then asks the store.
    """

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        self.clock = Clock()
        self.model = Model()
        self.numbers = 0
        self.frozen: datetime | None = None
        self.leases: list[Lease] = []
        self.locks: list[ProjectLock] = []
        self.seen: list[Any] = []
        self.repos: Any = None

    # --- what operations have in common

    @property
    def now(self) -> datetime:
        """The time that decides, but for ticks."""
        return self.frozen or self.clock.now

    def new_id(self, n: int, table: str) -> str:
        """Return an id, now and then one that is taken."""
        rows = list(self.model.tables[table])
        if n == TOP and rows:
            return rows[-1]
        self.numbers += 1
        return f"00000000-0000-7000-8000-{self.numbers:012}"

    def key(self, n: int, table: str) -> str:
        """Return the id of a row, or one that no row has."""
        rows = list(self.model.tables[table])
        return rows[n % len(rows)] if rows and n < TOP else "f" * 8 + "-0000-7000-8000-" + "0" * 12

    async def ask(
        self, error: type[MetastoreError] | None, answer: Awaitable[Any], **facts: Any
    ) -> Any:
        """Return the answer; None if it was the predicted error, whose attributes are `facts`."""
        name = inspect.stack()[1].function
        caught, result = None, None
        try:
            result = await answer
        except MetastoreError as refused:
            caught = refused
        if caught is not None:
            assert type(caught) is error, f"{name}: {caught!r} instead of {error}"
            for fact, value in facts.items():
                found = getattr(caught, fact)
                if isinstance(value, dict):
                    assert self.learned(dict(found), value) == dict(found)
                else:
                    assert found == value, f"{name}: {fact} is {found}, not {value}"
            self.counts[type(caught).__name__] += 1
            return None
        assert error is None, f"{name}: {result!r} instead of {error}"
        self.counts[name] += 1
        return result

    def learned(self, row: Values, expected: Values) -> Values:
        """Return `expected` with the times that only the answer can tell."""
        known = dict(expected)
        for column, value in expected.items():
            if value is Now:
                moment = row[column]
                assert abs(moment - self.now) < MINUTE / 4, f"{column} is {moment} at {self.now}"
                known[column] = moment
            elif value is Unknown:
                known[column] = row[column]
        return known

    async def stored(self, table: str, row: Any, expected: Values) -> None:
        """Note a row that was answered, which must be `expected`."""
        got = dict(row)
        known = self.learned(got, expected)
        assert got == known, {c: (got[c], known[c]) for c in known if got[c] != known[c]}
        times = {known[column] for column, value in expected.items() if value is Now}
        assert len(times) <= 1, "an operation has one time"
        self.model.tables[table][got["id"]] = known

    def is_live(self, expires_at: datetime | None, distrusts: bool = True) -> bool:
        if expires_at is None or expires_at <= self.now:
            return False
        return not distrusts or expires_at <= self.now + MAX_TTL + CLOCK_SKEW

    # --- the clock

    async def move_clock(self, n: list[int]) -> None:
        self.clock.advance(MOVES[(n[0] + n[1]) % len(MOVES)])

    # --- the registry

    async def create_repository(self, n: list[int]) -> None:
        id_, name = self.new_id(n[0], "repositories"), f"repository-{n[1]}"
        taken = id_ in self.model.repositories or self.model.of("repositories", name=name)
        row = await self.ask(
            AlreadyExists if taken else None,
            self.repos.repositories.create(name=name, remote_url="u", metadata={"n": n}, id=id_),
            table="repositories",
        )
        if row:
            expected = {
                "id": id_, "name": name, "remote_url": "u", "default_branch": "main",
                "metadata": {"n": n}, "created_at": Now, "updated_at": Now,
            }  # fmt: skip
            await self.stored("repositories", row, expected)

    async def update_repository(self, n: list[int]) -> None:
        id_ = self.key(n[0], "repositories")
        old = self.model.repositories.get(id_)
        new = {"remote_url": str(n[1]), "default_branch": f"b{n[2]}", "metadata": {"a": [n[3]]}}
        row = await self.ask(None if old else NotFound, self.repos.repositories.update(id_, **new))
        if old:
            await self.stored("repositories", row, old | new | {"updated_at": Now})

    async def delete_repository(self, n: list[int]) -> None:
        id_ = self.key(n[0], "repositories")
        error: Any = None if id_ in self.model.repositories else NotFound
        if any(self.model.of(name, repository_id=id_) for name in ("worktrees", "sessions")):
            error = InvalidReference
        await self.ask(error, self.repos.repositories.delete(id_))
        if error is None:
            del self.model.repositories[id_]

    async def create_worktree(self, n: list[int]) -> None:
        id_, path = self.new_id(n[0], "worktrees"), f"/w/{n[1]}"
        repository_id = self.key(n[2], "repositories")
        hashes = {"b": "2", "a": "1"} if n[3] % 2 else {}
        commit = f"c{n[3] // 2}" if n[3] else None
        error: Any = None
        if id_ in self.model.worktrees or self.model.of("worktrees", path=path):
            error = AlreadyExists
        elif repository_id not in self.model.repositories:
            error = InvalidReference
        row = await self.ask(
            error,
            self.repos.worktrees.create(
                repository_id=repository_id, path=path, commit_sha=commit,
                environment_hashes=hashes, id=id_,
            ),
            table="worktrees",
        )  # fmt: skip
        if row:
            expected = {
                "id": id_, "repository_id": repository_id, "path": path, "branch": None,
                "commit_sha": commit, "environment_hashes": hashes, "state": "ready",
                "lease_owner": None, "lease_token": None, "leased_at": None,
                "lease_expires_at": None, "version": self.model.floors["worktrees"],
                "created_at": Now, "updated_at": Now,
            }  # fmt: skip
            await self.stored("worktrees", row, expected)
            self.seen.append(row)

    async def retire_worktree(self, n: list[int]) -> None:
        await self._unless_held(n, "retire")

    async def delete_worktree(self, n: list[int]) -> None:
        await self._unless_held(n, "delete")

    async def _unless_held(self, n: list[int], verb: str) -> None:
        id_ = self.key(n[0], "worktrees")
        old = self.model.worktrees.get(id_)
        error: Any = None if old else NotFound
        facts: Values = {}
        if old and self.is_live(old["lease_expires_at"]):
            error, facts = LeaseUnavailable, {"worktree": old}
        row = await self.ask(error, getattr(self.repos.worktrees, verb)(id_), **facts)
        if error or not old:
            return
        if verb == "retire":
            new = {"state": "retired", "version": old["version"] + 1, "updated_at": Now}
            await self.stored("worktrees", row, old | _FREE | new)
            return
        del self.model.worktrees[id_]
        self.model.floors["worktrees"] = max(self.model.floors["worktrees"], old["version"])
        for session in self.model.of("sessions", worktree_id=id_):
            # The foreign key's action is an UPDATE by hand to the trigger.
            session |= {"worktree_id": None, "updated_at": Unknown}

    async def put_worktree_back(self, n: list[int]) -> None:
        id_ = self.key(n[0], "worktrees")
        old = self.model.worktrees.get(id_)
        retired = old is not None and old["state"] == "retired"
        row = await self.ask(None if retired else NotFound, self.repos.worktrees.reinstate(id_))
        if row and old:
            new = {"state": "ready", "version": old["version"] + 1, "updated_at": Now}
            await self.stored("worktrees", row, old | new)

    # --- leases

    async def reserve(self, n: list[int]) -> None:
        if not self.seen:
            return
        shown = self.seen[-1 - n[0] % len(self.seen)]
        old = self.model.worktrees.get(shown.id)
        error: Any = None if old else NotFound
        facts: Values = {}
        if old and (
            old["version"] != shown.version
            or old["state"] != "ready"
            or self.is_live(old["lease_expires_at"])
        ):
            error, facts = LeaseUnavailable, {"worktree": old}
        span = SPANS[n[1] % len(SPANS)]
        lease = await self.ask(
            error, self.repos.worktrees.reserve(shown, owner=f"o{n[2]}", ttl=span), **facts
        )
        if lease and old:
            await self._leased(lease, old, f"o{n[2]}", span)

    async def acquire(self, n: list[int]) -> None:
        repository_id = self.key(n[0], "repositories")
        span = SPANS[n[1] % len(SPANS)]
        hashes = {"a": "1", "b": "2"} if n[3] % 2 else {}
        commit = f"c{n[3] // 2}" if n[3] else None
        free, unbelieved = [], []
        for row in self.model.of("worktrees", repository_id=repository_id, state="ready"):
            if not self.is_live(row["lease_expires_at"], distrusts=False):
                free.append(row)
            elif not self.is_live(row["lease_expires_at"]):
                unbelieved.append(row)
        same_commit = [row for row in free if row["commit_sha"] == commit and commit]
        same_hashes = [row for row in free if row["environment_hashes"] == hashes and hashes]
        both = [row for row in same_commit if row in same_hashes]
        best = both or same_commit or same_hashes or free or unbelieved
        lease = await self.ask(
            None if best else LeaseUnavailable,
            self.repos.worktrees.acquire(
                repository_id, owner=f"o{n[2]}", ttl=span,
                prefer_commit=commit, prefer_environment=hashes,
            ),
            repository_id=repository_id,
        )  # fmt: skip
        if lease:
            least = min(map(_least_recently_used, best))
            # In a transaction several rows may have the same time.
            equals = {row["id"] for row in best if _least_recently_used(row) == least}
            assert lease.worktree_id in equals
            await self._leased(lease, self.model.worktrees[lease.worktree_id], f"o{n[2]}", span)

    async def _leased(self, lease: Lease, old: Values, owner: str, span: timedelta) -> None:
        new = {
            "lease_owner": owner,
            "lease_token": lease.token,
            "leased_at": Now,
            "lease_expires_at": lease.worktree.updated_at + span,
            "version": old["version"] + 1,
            "updated_at": Now,
        }
        await self.stored("worktrees", lease.worktree, old | new)
        assert (lease.owner, lease.fencing_number) == (owner, old["version"] + 1)
        assert lease.expires_at == new["lease_expires_at"]
        self.leases.append(lease)
        self.seen.append(lease.worktree)

    def _of_lease(self, n: int) -> tuple[Lease, Values | None] | None:
        """Return a lease that was granted, and its worktree if it is still held."""
        if not self.leases:
            return None
        lease = self.leases[-1 - n % len(self.leases)]
        old = self.model.worktrees.get(lease.worktree_id)
        held = (
            old is not None
            and old["lease_token"] == lease.token
            and old["version"] == lease.fencing_number
            and self.is_live(old["lease_expires_at"])
        )
        return lease, old if held else None

    async def renew(self, n: list[int]) -> None:
        if found := self._of_lease(n[0]):
            lease, old = found
            span = SPANS[n[1] % len(SPANS)]
            renewed = await self.ask(
                None if old else LeaseLost,
                self.repos.worktrees.renew(lease, ttl=span),
                resource_id=lease.worktree_id,
                fencing_number=lease.fencing_number,
            )
            if old:
                ends = renewed.worktree.updated_at + span
                if ends <= old["leased_at"]:
                    ends = old["lease_expires_at"]
                new = {"lease_expires_at": ends, "updated_at": Now}
                await self.stored("worktrees", renewed.worktree, old | new)
                self.leases.append(renewed)

    async def record_checkout(self, n: list[int]) -> None:
        if found := self._of_lease(n[0]):
            lease, old = found
            new: Values = {"branch": f"b{n[1]}", "commit_sha": f"c{n[2]}"}
            row = await self.ask(
                None if old else LeaseLost, self.repos.worktrees.record_checkout(lease, **new)
            )
            if old:
                new |= {"updated_at": Now}
                await self.stored("worktrees", row.worktree, old | new)

    async def release(self, n: list[int]) -> None:
        if found := self._of_lease(n[0]):
            lease, old = found
            row = await self.ask(None if old else LeaseLost, self.repos.worktrees.release(lease))
            if old:
                new = {"version": old["version"] + 1, "updated_at": Now}
                await self.stored("worktrees", row, old | _FREE | new)
                self.seen.append(row)

    # --- projects and their locks

    async def ensure_project(self, n: list[int]) -> None:
        path = f"/p/{n[0] % 3}"
        name = f"name-{n[1]}" if n[1] else None
        config = {"c": n[2]} if n[2] else None
        row = await self.ask(None, self.repos.projects.ensure(path=path, name=name, config=config))
        new: Values = {"updated_at": Now}
        if name:
            new["name"] = name
        if config:
            new["config"] = config
        [old] = self.model.of("projects", path=path) or [
            {"id": row.id, "path": path, "name": None, "config": {}, "created_at": Now}
        ]
        await self.stored("projects", row, old | new)

    async def delete_project(self, n: list[int]) -> None:
        id_ = self.key(n[0], "projects")
        old = self.model.projects.get(id_)
        error: Any = None if old else NotFound
        if old and self.model.of("sessions", project_path=old["path"]):
            error = InvalidReference
        await self.ask(error, self.repos.projects.delete(id_))
        if error is None:
            for lock in self.model.of("project_locks", project_id=id_):
                self.model.drop_lock(lock)
            del self.model.projects[id_]

    async def lock(self, n: list[int]) -> None:
        project_id, session_id = self.key(n[0], "projects"), self.key(n[1], "sessions")
        span = SPANS[n[2] % len(SPANS)]
        [old] = self.model.of("project_locks", project_id=project_id) or [{}]
        session = self.model.sessions.get(session_id)
        project = self.model.projects.get(project_id)
        error: Any = None
        facts: Values = {}
        if project is None:
            error, facts = InvalidReference, {"references": "projects"}
        elif refused := self.model.refused_work(session_id):
            error, facts = refused
        elif session and session["project_path"] != project["path"]:
            error = InvalidValue
        elif old and self.is_live(old["expires_at"]):
            error, facts = LockHeld, {"lock": old}
        lock = await self.ask(
            error,
            self.repos.project_locks.acquire(
                project_id=project_id, session_id=session_id, ttl=span
            ),
            **facts,
        )
        if lock:
            number = old["fencing_number"] if old else self.model.floors["project_locks"]
            if old:
                del self.model.project_locks[old["id"]]
            expected = {
                "id": lock.id, "project_id": project_id, "session_id": session_id,
                "acquired_at": Now, "expires_at": lock.acquired_at + span,
                "fencing_number": number + 1,
            }  # fmt: skip
            await self.stored("project_locks", lock, expected)
            self.locks.append(lock)

    def _of_lock(self, n: int) -> tuple[ProjectLock, Values | None] | None:
        if not self.locks:
            return None
        lock = self.locks[-1 - n % len(self.locks)]
        old = self.model.project_locks.get(lock.id)
        held = old is not None and self.is_live(old["expires_at"])
        return lock, old if held else None

    async def renew_lock(self, n: list[int]) -> None:
        if found := self._of_lock(n[0]):
            lock, old = found
            span = SPANS[n[1] % len(SPANS)]
            error: Any = None if old else LeaseLost
            facts: Values = {}
            if old and (session := self.model.ended(lock.session_id)):
                error, facts = InvalidTransition, {"table": "sessions", "row": session}
            row = await self.ask(error, self.repos.project_locks.renew(lock, ttl=span), **facts)
            if old and error is None:
                ends = row.expires_at
                if ends != old["expires_at"]:
                    assert abs(ends - span - self.now) < MINUTE / 4
                else:
                    assert self.now + span - MINUTE / 4 <= old["acquired_at"]
                await self.stored("project_locks", row, old | {"expires_at": ends})

    async def unlock(self, n: list[int]) -> None:
        if found := self._of_lock(n[0]):
            lock, old = found
            await self.ask(None if old else LeaseLost, self.repos.project_locks.release(lock))
            if old:
                self.model.drop_lock(old)

    # --- sessions and what belongs to them

    async def create_session(self, n: list[int]) -> None:
        id_ = self.new_id(n[0], "sessions")
        values: Values = {
            "session_type": "debug" if n[1] % 2 else "test_generation",
            "project_path": f"/p/{n[2] % 3}" if n[2] else None,
            "repository_id": self.key(n[3], "repositories") if n[1] else None,
            "worktree_id": self.key(n[3], "worktrees") if n[2] > 2 else None,
            "auth_token_id": self.key(n[3], "auth_tokens") if n[1] > 2 else None,
        }
        error: Any = None
        facts: Values = {"table": "sessions"}
        references = {
            "repository_id": "repositories", "worktree_id": "worktrees",
            "auth_token_id": "auth_tokens",
        }  # fmt: skip
        if values["session_type"] != "debug" and values["project_path"] is None:
            error = InvalidValue
        elif (token := self.model.auth_tokens.get(values["auth_token_id"])) and (
            token["revoked_at"] is not None
            or (token["expires_at"] is not None and token["expires_at"] <= self.now)
        ):
            error = TokenRejected
        elif self.model.is_retired(values["worktree_id"]):
            error, facts = InvalidTransition, {"table": "worktrees", "from_state": "retired"}
        elif self.model.is_elsewhere(values["worktree_id"], values["repository_id"]):
            error = InvalidValue
        elif id_ in self.model.sessions:
            error = AlreadyExists
        elif any(
            values[column] is not None and values[column] not in self.model.tables[table]
            for column, table in references.items()
        ):
            error = InvalidReference
        if error is TokenRejected:
            facts = {"scope": None}
        row = await self.ask(error, self.repos.sessions.create(id=id_, **values), **facts)
        if not row:
            return
        expected = values | {
            "id": id_, "status": "pending", "mode": "interactive", "config": {}, "result": None,
            "metadata": {}, "error_message": None, "created_at": Now, "updated_at": Now,
            "completed_at": None,
        }  # fmt: skip
        await self.stored("sessions", row, expected)
        if path := values["project_path"]:
            project = await self.repos.projects.find_by_path(path)
            [old] = self.model.of("projects", path=path) or [
                {"id": project.id, "path": path, "name": None, "config": {}, "created_at": Now}
            ]
            await self.stored("projects", project, old | {"updated_at": row.created_at})

    async def advance_session(self, n: list[int]) -> None:
        await self._advance("sessions", n)

    async def advance_step(self, n: list[int]) -> None:
        await self._advance("steps", n)

    async def advance_command(self, n: list[int]) -> None:
        await self._advance("commands", n)

    async def _advance(self, table: str, n: list[int]) -> None:
        verbs = STATES[table]
        verb = list(verbs)[n[1] % len(verbs)]
        allowed, to_state = verbs[verb]
        id_ = self.key(n[0], table)
        old = self.model.tables[table].get(id_)
        arguments: Values = {}
        new: Values = {}
        match verb:
            case "fail":
                new = arguments = {"error_message": f"why {n[2]}"}
            case "complete":
                new = arguments = {"result" if table == "sessions" else "output": [n[2], None]}
            case "finish":
                new = arguments = {"exit_code": n[2]}
                to_state = "failed" if n[2] else to_state
            case "time_out":
                new = {"error_message": None}
            case "start" if table == "commands" and n[2] % 2:
                new = arguments = {"log_path": f"/log/{n[2]}"}
        error: Any = None if old else NotFound
        facts: Values = {}
        if old and old["status"] not in allowed:
            error = InvalidTransition
            facts = {"from_state": old["status"], "to_state": to_state, "row": old}
        elif old and verb == "start" and table == "sessions":
            if self.model.is_retired(old["worktree_id"]):
                error, facts = InvalidTransition, {"table": "worktrees", "from_state": "retired"}
        elif old and verb == "start" and (session := self.model.ended(old["session_id"])):
            error, facts = InvalidTransition, {"table": "sessions", "row": session}
        row = await self.ask(
            error, getattr(getattr(self.repos, table), verb)(id_, **arguments), **facts
        )
        if row and old:
            new = new | {"status": to_state}
            if table == "sessions":
                new["updated_at"] = Now
            elif to_state == "running":
                new["started_at"] = Now
            if to_state not in ("in_progress", "paused", "running"):
                new["completed_at"] = Now
            await self.stored(table, row, old | new)

    async def delete_session(self, n: list[int]) -> None:
        id_ = self.key(n[0], "sessions")
        error = None if id_ in self.model.sessions else NotFound
        await self.ask(error, self.repos.sessions.delete(id_))
        if error is None:
            self.model.drop_session(id_)

    def _place(self, table: str, session_id: str) -> int:
        taken = [row["sequence"] for row in self.model.of(table, session_id=session_id)]
        return max(taken, default=0) + 1

    async def create_step(self, n: list[int]) -> None:
        id_, session_id = self.new_id(n[0], "steps"), self.key(n[1], "sessions")
        sequence = n[2] - 1 if n[2] else None
        place = self._place("steps", session_id) if sequence is None else sequence
        error: Any = None
        facts: Values = {"table": "steps"}
        if refused := self.model.refused_work(session_id):
            error, facts = refused
        elif id_ in self.model.steps or self.model.of(
            "steps", session_id=session_id, sequence=place
        ):
            error = AlreadyExists
        row = await self.ask(
            error,
            self.repos.steps.create(
                session_id=session_id, name="n", sequence=sequence, input=n, id=id_
            ),
            **facts,
        )
        if row:
            expected = {
                "id": id_, "session_id": session_id, "name": "n", "sequence": place,
                "status": "pending", "input": n, "output": None, "error_message": None,
                "started_at": None, "completed_at": None,
            }  # fmt: skip
            await self.stored("steps", row, expected)

    async def create_command(self, n: list[int]) -> None:
        id_, session_id = self.new_id(n[0], "commands"), self.key(n[1], "sessions")
        argv = ["a"] * n[2]
        error: Any = None
        facts: Values = {"table": "commands"}
        if not argv:
            error = InvalidValue
        elif refused := self.model.refused_work(session_id):
            error, facts = refused
        elif id_ in self.model.commands:
            error = AlreadyExists
        row = await self.ask(
            error,
            self.repos.commands.create(
                session_id=session_id, argv=argv, working_directory="/", id=id_
            ),
            **facts,
        )
        if row:
            expected = {
                "id": id_, "session_id": session_id, "argv": argv, "working_directory": "/",
                "sequence": self._place("commands", session_id), "status": "pending",
                "exit_code": None, "log_path": None, "error_message": None, "created_at": Now,
                "started_at": None, "completed_at": None,
            }  # fmt: skip
            await self.stored("commands", row, expected)

    async def create_artifact(self, n: list[int]) -> None:
        id_, session_id = self.new_id(n[0], "artifacts"), self.key(n[1], "sessions")
        command_id = self.key(n[2], "commands") if n[2] else None
        command = self.model.commands.get(command_id or "")
        error: Any = None
        if command and command["session_id"] != session_id:
            error = InvalidValue
        elif id_ in self.model.artifacts:
            error = AlreadyExists
        elif session_id not in self.model.sessions or (
            command_id and command_id not in self.model.commands
        ):
            error = InvalidReference
        values: Values = {
            "session_id": session_id, "command_id": command_id, "artifact_type": "log",
            "name": "n", "content_path": "c", "size_bytes": n[3], "id": id_,
        }  # fmt: skip
        row = await self.ask(error, self.repos.artifacts.create(**values), table="artifacts")
        if row:
            expected = values | {"sha256": None, "metadata": {}, "created_at": Now}
            await self.stored("artifacts", row, expected)

    async def delete_artifact(self, n: list[int]) -> None:
        id_ = self.key(n[0], "artifacts")
        error = None if id_ in self.model.artifacts else NotFound
        await self.ask(error, self.repos.artifacts.delete(id_))
        if error is None:
            del self.model.artifacts[id_]

    async def append_events(self, n: list[int]) -> None:
        session_id = self.key(n[0], "sessions")
        events = [
            NewEvent("t", f"m{k}", "loud" if n[2] == k + 1 else "info", {"k": k},
                     self.new_id(n[3] if k else 0, "events"))
            for k in range(n[1])
        ]  # fmt: skip
        ids = [event.id for event in events]
        error: Any = None
        if any(event.level == "loud" for event in events):
            error = InvalidValue
        elif len(set(ids)) < len(ids) or set(ids) & self.model.events.keys():
            error = AlreadyExists
        elif events and session_id not in self.model.sessions:
            error = InvalidReference
        answer = await self.ask(error, self.repos.events.append_many(session_id, events))
        if error is None:
            assert answer == ids
            for event in events:
                row = await self.repos.events.get(event.id)
                last = max((it["position"] for it in self.model.events.values()), default=0)
                assert row.position > last
                expected = {
                    "position": row.position, "id": event.id, "session_id": session_id,
                    "event_type": "t", "level": "info", "message": event.message,
                    "context": event.context, "created_at": Now,
                }  # fmt: skip
                await self.stored("events", row, expected)

    async def take_checkpoint(self, n: list[int]) -> None:
        id_, session_id = self.new_id(n[0], "debugger_state"), self.key(n[1], "sessions")
        session = self.model.sessions.get(session_id)
        error: Any = None if session else NotFound
        facts: Values = {}
        if session and session["status"] in ("completed", "failed", "cancelled"):
            error, facts = InvalidTransition, {"row": session}
        elif session and id_ in self.model.debugger_state:
            error = AlreadyExists
        row = await self.ask(
            error, self.repos.debugger_state.checkpoint(session_id, n, label="l", id=id_), **facts
        )
        if row:
            expected = {
                "id": id_, "session_id": session_id, "label": "l", "state": n, "created_at": Now,
                "sequence": self._place("debugger_state", session_id),
            }  # fmt: skip
            await self.stored("debugger_state", row, expected)

    # --- tokens

    async def issue(self, n: list[int]) -> None:
        id_ = self.new_id(n[0], "auth_tokens")
        span = SPANS[n[1] % len(SPANS)] if n[1] else None
        issued = await self.ask(
            AlreadyExists if id_ in self.model.auth_tokens else None,
            self.repos.auth_tokens.issue(
                user_name=f"u{n[2]}", name="n", scopes=GRANTS[n[3] % 4], ttl=span, id=id_
            ),
            table="auth_tokens",
        )
        if issued:
            record = issued.record
            expected = {
                "id": id_, "user_name": f"u{n[2]}", "name": "n",
                "token_prefix": issued.token[:12], "token_hash": record.token_hash,
                "scopes": GRANTS[n[3] % 4], "created_at": Now,
                "expires_at": record.created_at + span if span else None,
                "last_used_at": None, "revoked_at": None, "replaced_by": None,
            }  # fmt: skip
            await self.stored("auth_tokens", record, expected)
            self.model.tokens[id_] = issued.token

    async def verify(self, n: list[int]) -> None:
        id_ = self.key(n[0], "auth_tokens")
        old = self.model.auth_tokens.get(id_)
        scope = SCOPES[n[1] % 4]
        error: Any = TokenRejected
        if old and old["revoked_at"] is None:
            expired = old["expires_at"] is not None and old["expires_at"] <= self.now
            if not expired and (scope is None or scope in OPENS[GRANTS.index(old["scopes"])]):
                error = None
        row = await self.ask(
            error,
            self.repos.auth_tokens.verify(self.model.tokens.get(id_, "mst_" + "0" * 46), scope),
            scope=scope,
        )
        if row and old:
            last = old["last_used_at"]
            # Half a minute aside, for the clock ticks while it is asked.
            unused = last is None or last <= self.now - MINUTE + timedelta(milliseconds=1)
            await self.stored("auth_tokens", row, old | ({"last_used_at": Now} if unused else {}))

    async def rotate(self, n: list[int]) -> None:
        id_ = self.key(n[0], "auth_tokens")
        old = self.model.auth_tokens.get(id_)
        grace = MINUTE * n[1]
        error: Any = None if old else NotFound
        facts: Values = {}
        if old:
            expired = old["expires_at"] is not None and old["expires_at"] <= self.now
            if old["revoked_at"] is not None or expired or old["replaced_by"] is not None:
                state = "revoked" if old["revoked_at"] else "expired" if expired else "replaced"
                error, facts = InvalidTransition, {"from_state": state, "row": old}
        issued = await self.ask(error, self.repos.auth_tokens.rotate(id_, grace=grace), **facts)
        if issued and old:
            record = issued.record
            lifetime = old["expires_at"] and old["expires_at"] - old["created_at"]
            expected = old | {
                "id": record.id, "token_prefix": issued.token[:12],
                "token_hash": record.token_hash, "created_at": Now,
                "expires_at": record.created_at + lifetime if lifetime else None,
                "last_used_at": None,
            }  # fmt: skip
            await self.stored("auth_tokens", record, expected)
            self.model.tokens[record.id] = issued.token
            ends = record.created_at + grace
            if old["expires_at"]:
                ends = min(ends, old["expires_at"])
            replaced = await self.repos.auth_tokens.get(id_)
            await self.stored(
                "auth_tokens", replaced, old | {"expires_at": ends, "replaced_by": record.id}
            )

    async def revoke(self, n: list[int]) -> None:
        id_ = self.key(n[0], "auth_tokens")
        old = self.model.auth_tokens.get(id_)
        row = await self.ask(None if old else NotFound, self.repos.auth_tokens.revoke(id_))
        if row and old:
            await self.stored("auth_tokens", row, old | {"revoked_at": old["revoked_at"] or Now})


_FREE = dict.fromkeys(("lease_owner", "lease_token", "leased_at", "lease_expires_at"))


def _least_recently_used(row: Values) -> tuple[Any, Any]:
    expires_at = row["lease_expires_at"]
    return (expires_at.isoformat() if expires_at else "", row["updated_at"])


OPERATIONS: dict[str, Callable[[Operations, list[int]], Coroutine[Any, Any, None]]] = {
    name: method
    for name, method in vars(Operations).items()
    if inspect.iscoroutinefunction(method)
    and not name.startswith("_")
    and name not in ("ask", "stored")
}
NUMBERS = st.lists(st.integers(0, TOP), min_size=4, max_size=4)
BODY = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), NUMBERS), max_size=5)


class Machine(RuleBasedStateMachine, Operations):
    """Runs operations in any order, alone and in transactions, and compares after each."""

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        Operations.__init__(self)
        self.runner = asyncio.Runner()
        self.store = self.runner.run(self._open())

    async def _open(self) -> MetadataStore:
        return await MetadataStore.open("sqlite://", clock=self.clock)

    def teardown(self) -> None:
        with self.runner:
            self.runner.run(self.store.close())

    @initialize(sizes=st.lists(st.integers(1, 4), min_size=5, max_size=5), body=BODY)
    def begin_with_some_rows(self, sizes: list[int], body: list[tuple[str, list[int]]]) -> None:
        """Begin with something to work on: most operations need rows of others."""
        self.repos = self.store
        for name, size in zip(
            ("create_repository", "create_worktree", "create_session", "issue", "lock"),
            sizes,
            strict=True,
        ):
            for n in range(size):
                self.runner.run(OPERATIONS[name](self, [0, n, 2 * n + 1, n]))
        self.runner.run(self._transaction(body, undo=False, guard="none", n=0))

    @rule(
        body=BODY,
        undo=st.booleans(),
        guard=st.sampled_from(["none", "lease", "lock"]),
        n=st.integers(0, TOP),
    )
    def transaction(
        self, body: list[tuple[str, list[int]]], undo: bool, guard: str, n: int
    ) -> None:
        self.runner.run(self._transaction(body, undo, guard, n))

    async def _transaction(
        self, body: list[tuple[str, list[int]]], undo: bool, guard: str, n: int
    ) -> None:
        look = {"none": lambda _: None, "lease": self._of_lease, "lock": self._of_lock}[guard]
        found = look(n)
        held, row = found or (None, None)
        before = (copy.deepcopy(self.model), [*self.leases], [*self.locks], [*self.seen])
        error: type[Exception] | None = None
        begun = False
        try:
            async with self.store.transaction(held) as tx:
                begun = True
                self.repos, self.frozen = tx, self.clock.now
                for name, numbers in body:
                    await OPERATIONS[name](self, numbers)
                if undo:
                    raise _Undo
        except (_Undo, LeaseLost) as caught:
            error = type(caught)
        finally:
            self.repos, self.frozen = self.store, None
        if held is not None and row is None:
            assert error is LeaseLost
            assert not begun
        elif undo:
            assert error is _Undo
        else:
            # The body may have given the lease back, or moved the clock behind its end.
            still = held is None or self._is_held(held)
            assert error is (None if still else LeaseLost)
        self.counts[f"transaction: {error.__name__ if error else 'committed'}"] += 1
        if error is not None:
            self.model, self.leases, self.locks, self.seen = before

    def _is_held(self, held: Lease | ProjectLock) -> bool:
        if isinstance(held, ProjectLock):
            lock = self.model.project_locks.get(held.id)
            return lock is not None and self.is_live(lock["expires_at"])
        row = self.model.worktrees.get(held.worktree_id)
        return (
            row is not None
            and (row["lease_token"], row["version"]) == (held.token, held.fencing_number)
            and self.is_live(row["lease_expires_at"])
        )

    @invariant()
    def what_is_read_back_is_the_model(self) -> None:
        self.runner.run(self._compare())

    async def _compare(self) -> None:
        model, store = self.model, self.store
        await self._same("repositories", store.repositories.list)
        await self._same("projects", store.projects.list)
        await self._same("auth_tokens", store.auth_tokens.list)
        await self._same("sessions", store.sessions.list_recent, ("created_at", "id"), newest=True)
        for repository_id in model.repositories:
            await self._same(
                "worktrees", store.worktrees.list_by_repository, repository_id=repository_id
            )
        for project_id in model.projects:
            lock = await store.project_locks.find_by_project(project_id)
            expected = model.of("project_locks", project_id=project_id)
            assert [dict(lock)] == expected if lock else not expected
        for session_id in model.sessions:
            for table, order in (
                ("steps", "sequence"), ("commands", "sequence"), ("artifacts", "id"),
                ("events", "position"), ("debugger_state", "sequence"),
            ):  # fmt: skip
                read = getattr(store, table).list_by_session
                await self._same(table, read, (order,), session_id=session_id)
        live = [row for row in model.worktrees.values() if self.is_live(row["lease_expires_at"])]
        held = [row for row in model.worktrees.values() if row["lease_expires_at"]]
        assert await store.worktrees.count_held() == (len(live), len(held) - len(live))

    async def _same(
        self,
        table: str,
        read: Callable[..., Awaitable[Any]],
        order: tuple[str, ...] = ("id",),
        newest: bool = False,
        **where: str,
    ) -> None:
        expected = self.model.of(table, **where)
        expected.sort(key=lambda row: tuple(row[column] for column in order), reverse=newest)
        rows: list[Any] = []
        page = await read(*where.values(), limit=4)
        while True:
            rows += page.items
            if page.next is None:
                break
            page = await read(*where.values(), limit=4, after=page.next)
        assert len(rows) == len(expected), table
        for row, values in zip(rows, expected, strict=True):
            known = self.learned(dict(row), values)
            assert dict(row) == known
            values |= known


def _as_rule(name: str) -> Callable[[Machine, list[int]], None]:
    def run(self: Machine, n: list[int]) -> None:
        self.runner.run(OPERATIONS[name](self, n))

    run.__name__ = f"run_{name}"
    return run


# Leases and locks show what they are only after several operations on one of them.
for _name in (*OPERATIONS, "lock", "lock", "renew_lock", "unlock", "acquire", "release", "rotate"):
    while hasattr(Machine, f"run_{_name}"):
        _name = f"{_name}_"
    setattr(Machine, f"run_{_name}", rule(n=NUMBERS)(_as_rule(_name.rstrip("_"))))


@pytest.mark.parametrize(
    ("examples", "steps"),
    [
        pytest.param(6, 30, id="short"),
        pytest.param(200, 50, id="torture", marks=pytest.mark.torture),
    ],
)
def test_model__every_answer_and_every_row_is_as_predicted(
    record_property: Callable[[str, object], None], examples: int, steps: int
) -> None:
    Operations.counts.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    counts = Operations.counts
    refusals = {name: count for name, count in counts.items() if name[0].isupper()}
    record_property(
        "figures",
        f"{examples} examples, {counts.total()} operations and transactions, "
        f"{sum(refusals.values())} predicted refusals: {refusals}",
    )
    assert counts.total() > examples * steps / 4
    assert {"AlreadyExists", "InvalidReference", "NotFound"} <= refusals.keys()
    assert counts["transaction: committed"] >= examples
    if examples >= 200:
        assert {"LeaseLost", "LockHeld", "InvalidTransition", "TokenRejected"} <= refusals.keys()
        assert counts["transaction: LeaseLost"]
