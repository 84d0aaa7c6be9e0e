"""Every argument of every public method is given values that are wrong in every way.

The methods are found by introspection, so that a new one is attacked as soon as it exists. A value
is accepted, or refused with one of metastore's own errors and without a trace: no row changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import sqlite3
import uuid
from collections import Counter
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from metastore import (
    InvalidValue,
    LeaseUnavailable,
    LockHeld,
    MetadataStore,
    MetastoreError,
    NewEmbedding,
    NewEvent,
)
from metastore.codec import MAX_TEXT
from metastore.paging import FIRST_ID
from metastore.repositories import repository_types
from metastore.testing import Clock
from metastore.testing.template import write_template
from tests.batteries.test_damage import fill

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metastore.codec import Row

MINUTE = timedelta(minutes=1)
UNKNOWN_ID = "01900000-0000-7000-8000-000000000000"


@cache
def nested(depth: int) -> Any:
    """Return lists within lists. Made once: a deep value costs more than what it is handed to."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@cache
def oversize() -> str:
    return "x" * (MAX_TEXT + 1)


class Stubborn:
    """Raises whatever it is asked."""

    def __len__(self) -> int:
        raise OSError("no length")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __eq__(self, _other: object) -> bool:
        raise ZeroDivisionError("not comparable")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ArithmeticError("no truth")


HOSTILE: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "true": lambda: True,
    "zero": lambda: 0,
    "negative": lambda: -1,
    "beyond 64 bits": lambda: 1 << 63,
    "400 digits": lambda: 10**400,
    "fraction": lambda: 1.5,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "empty": lambda: "",
    "text": lambda: "nonsense",
    "NUL": lambda: "a\0b",
    "surrogate": lambda: "a\ud800",
    "oversize": oversize,
    "first id": lambda: FIRST_ID,
    "UUID object": lambda: uuid.UUID(UNKNOWN_ID),
    "bytes": lambda: b"\xff",
    "bytearray": lambda: bytearray(b"a"),
    "empty list": list,
    "list of surrogates": lambda: ["\ud800"],
    "list of NULs": lambda: ["a\0"],
    "list of numbers": lambda: [1, 10**400],
    "list of nothing": lambda: [None],
    "list of lists": lambda: [["a"], {}],
    "deep": lambda: nested(990),
    "bottomless": lambda: nested(100_000),
    "empty object": dict,
    "object of number keys": lambda: {1: 2},
    "object of NaN": lambda: {"a": float("nan")},
    "object of surrogates": lambda: {"\udc80": "\ud800"},
    "tuple": lambda: ("a", 1),
    "set": lambda: {1},
    "naive": lambda: datetime(2026, 1, 1),  # noqa: DTZ001 - that it is naive is the fault
    "before year 1": lambda: datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    "after year 9999": lambda: datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-12))),
    "cursor before year 1": lambda: f"0001-01-01T00:00:00.000+14:00/{UNKNOWN_ID}",
    "cursor after year 9999": lambda: f"9999-12-31T23:00:00.000-12:00/{UNKNOWN_ID}",
    "day": lambda: date(2026, 1, 1),
    "no time": lambda: timedelta(0),
    "endless time": lambda: timedelta.max,
    "negative time": lambda: timedelta.min,
    "decimal NaN": lambda: Decimal("NaN"),
    "signalling NaN": lambda: Decimal("sNaN"),
    "huge decimal": lambda: Decimal("1e999999999"),
    "tiny decimal": lambda: Decimal("1e-999999999"),
    "huge decimal as text": lambda: "1e999999999",
    "ratio": lambda: Fraction(1, 3),
    "complex": lambda: 1j,
    "object": object,
    "class": lambda: int,
    "function": lambda: lambda: None,
    "iterator": lambda: iter([1, "\ud800"]),
    "stubborn": Stubborn,
}


class World(NamedTuple):
    """A store with rows in every table, and a look at whether they change."""

    store: MetadataStore
    rows: dict[str, list[Row]]
    look: sqlite3.Connection

    def version(self) -> int:
        """Return a number that grows whenever a row changes."""
        [version] = self.look.execute("PRAGMA data_version").fetchone()
        return int(version)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("filled") / "metadata.db"
    write_template(path)

    async def make() -> None:
        async with MetadataStore.open(f"sqlite:///{path}", clock=Clock()) as store:
            await fill(store)

    asyncio.run(make())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


@contextlib.asynccontextmanager
async def opened(filled: bytes, folder: Path) -> Any:
    path = folder / "metadata.db"
    path.write_bytes(filled)
    path.chmod(0o600)
    async with MetadataStore.open(f"sqlite:///{path}", clock=Clock()) as store:
        with contextlib.closing(sqlite3.connect(path)) as look:
            rows = {
                it.table: store.__getattribute__(it.table)._decode(
                    look.execute(
                        f"SELECT {', '.join(it.row_type.__struct_fields__)} FROM {it.table}"
                    ).fetchall()
                )
                for it in repository_types()
            }
            yield World(store, rows, look)


def baseline(world: World, table: str, verb: str) -> dict[str, Any]:
    """Return a value that is taken for every argument there is, by its name."""
    ids = {
        f"{name}_id": world.rows[of][0]["id"]
        for name, of in {
            "repository": "repositories",
            "worktree": "worktrees",
            "project": "projects",
            "lock": "project_locks",
            "token": "auth_tokens",
            "session": "sessions",
            "auth_token": "auth_tokens",
            "event": "events",
            "command": "commands",
            "artifact": "artifacts",
            "checkpoint": "debugger_state",
            "job": "jobs",
            "entry": "cost_entries",
            "task": "tasks",
            "workflow": "workflows",
            "summary": "message_summaries",
            "metric": "context_metrics",
            "execution": "tool_executions",
        }.items()
    }
    ids["step_id"] = world.rows["steps" if table == "steps" else "job_steps"][0]["id"]
    if table == "client_sessions":
        ids["session_id"] = world.rows["client_sessions"][0]["id"]
    locks = world.rows["project_locks"]
    leased: Any = next(it for it in world.rows["worktrees"] if it["lease_owner"])
    claimed: Any = next(it for it in world.rows["tasks"] if it["lease_owner"])
    from metastore.repositories.tasks import TaskLease
    from metastore.repositories.worktrees import Lease

    lease = TaskLease.of(claimed) if table == "tasks" else Lease.of(leased)
    values: dict[str, Any] = {
        **ids,
        **(dict(world.rows[table][0]) if world.rows[table] else {}),
        "id": None,
        "after": None,
        "limit": 5,
        "owner": "o",
        "ttl": MINUTE,
        "wait": None,
        "prefer_commit": None,
        "prefer_environment": {"a": "b"},
        "worktree": leased,
        "lease": lease,
        "lock": locks[0],
        "held": locks[0] if table == "project_locks" else lease,
        "task_types": ["none"],
        "spread": False,
        "error_message": "e",
        "error": "e",
        "result": {},
        "interval": MINUTE,
        "older_than": MINUTE,
        "resource": "events" if table == "audit_chains" else "worktrees",
        "resource_id": UNKNOWN_ID,
        "checkpoint": None,
        "signer": None,
        "verify_key": None,
        "events": [NewEvent("t", "m")],
        "embeddings": [NewEmbedding("r", "t", [1.0, 2.0, 3.0])],
        "vector": [1.0, 2.0, 3.0],
        "min_score": None,
        "request_id": "new",
        "amount_usd": "0.1",
        "cost_usd": "0.1",
        "budget_usd": "1",
        "warn_at": 0.5,
        "by": "provider",
        "since": None,
        "until": None,
        "token": "mst_" + "0" * 46,
        "scope": "a:b",
        "scopes": ["a:b"],
        "grace": MINUTE,
        "directory": "exported",
        "overwrite": True,
        "data": b"bytes",
        "match": "all",
        "url": "https://example.com/pull/9",
        "form": "json",
        "document": '{"a": {"value": 1}}',
        "batch": 10,
        "if_version": None,
        "value": 1,
        "value_type": None,
        # A key that is a secret stays one.
        "is_secret": True,
        "state": {},
        "label": "l",
        "output": {},
        "worktree_id": None if table == "sessions" else ids["worktree_id"],
        "exit_code": 0,
        "sequence": None if verb in ("create", "add") else 1,
        "is_available": None,
        "take": None,
        "ticket": world.rows["lease_waiters"][0] if world.rows["lease_waiters"] else None,
    }
    if table in ("events", "commands", "debugger_state", "lease_waiters"):
        values["after"] = 0
    if table == "memory_limits":
        # The first row is the default, which is no job's.
        values["job_id"] = ids["job_id"]
    return values


class Method(NamedTuple):
    """A public method, and an argument to attack."""

    table: str
    verb: str
    argument: str

    def __str__(self) -> str:
        return f"{self.table}.{self.verb}({self.argument})"


def public_methods() -> dict[str, list[Method]]:
    """Return every argument of every public method, by table."""
    found: dict[str, list[Method]] = {}
    for repository in repository_types():
        for verb, function in inspect.getmembers(repository, inspect.isfunction):
            if verb.startswith("_"):
                continue
            parameters = list(inspect.signature(function).parameters)[1:]
            found.setdefault(repository.table, []).extend(
                Method(repository.table, verb, it) for it in parameters
            )
    return found


METHODS = public_methods()

INTERNAL = {
    # Its callers are the repositories that lease; what it is given was checked by them.
    "lease_waiters.wait_in_queue",
    "lease_waiters.leaving",
    # The deletion of a job is its caller.
    "memory_files.pieces_of_job",
}


async def call(operation: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Call a method to its end; a generator gives one item, a context manager is left at once."""
    result = operation(**arguments)
    if inspect.isasyncgen(result):
        try:
            with contextlib.suppress(TimeoutError):
                # A follower that was given nothing hostile waits for the next event.
                await asyncio.wait_for(anext(result, None), 0.02)
        finally:
            await result.aclose()
    elif isinstance(result, contextlib.AbstractAsyncContextManager):
        async with result:
            pass
    elif inspect.isawaitable(result):
        await result


NAMED_OTHERWISE = {
    "budget_usd": {"budget_nano_usd"},
    "data": {"bytes"},
    "entry_id": {"corrects"},
    "owner": {"lease_owner", "worktrees_lease_check"},
    "prefer_commit": {"commit_sha"},
    "prefer_environment": {"environment_hashes"},
    "url": {"link", "pr_links"},
    "vector": {"dimensions"},
    "after": {"after_id", "after_key", "after_path", "after_place", "after_request"},
}


def named(method: Method) -> set[str]:
    """Return what an error may call an argument: its name, its column, or the column's CHECK."""
    argument = method.argument
    names = {argument, f"{method.table}_{argument}_check", *NAMED_OTHERWISE.get(argument, ())}
    return names | {"id"} if argument.endswith("_id") else names


async def test_transaction__is_never_opened_without_the_guard_that_was_asked_for(
    filled: bytes, tmp_path: Path
) -> None:
    guards = {"lease"} ^ inspect.signature(MetadataStore.transaction).parameters.keys()
    assert guards == {"self"}
    async with opened(filled, tmp_path) as world:
        before = world.version()
        for name, make in HOSTILE.items():
            if name == "nothing":
                continue
            with pytest.raises(InvalidValue) as refused:
                async with world.store.transaction(lease=make()) as tx:
                    await tx.repositories.create(name=name, remote_url="u")
            assert refused.value.column == "lease"
        assert world.version() == before


@pytest.mark.parametrize(
    "argument", [it for it in inspect.signature(MetadataStore.open).parameters if it != "cls"]
)
async def test_open__takes_an_argument_or_refuses_it(
    filled: bytes, tmp_path: Path, argument: str
) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(filled)
    path.chmod(0o600)
    # What it means to leave them out.
    taken = {"url": {"nothing"}, "clock": {"nothing", "function", "class", "object"}}
    taken["migrate"] = {"true"}
    for name, make in HOSTILE.items():
        if name in taken.get(argument, ()):
            continue
        with pytest.raises(InvalidValue) as refused:
            await MetadataStore.open(**{"url": f"sqlite:///{path}", argument: make()})
        assert refused.value.column == argument, name


# What the file system says of a folder is the file system's to say.
FOLDER = {("memory_files", "export", "directory"): (OSError,)}


def ended(world: World, before: int, error: MetastoreError) -> str:
    """Return how a call ended that was refused."""
    if not str(error).isprintable():
        return f"{type(error).__name__}, which is not printable: {str(error)!r}"
    if world.version() != before:
        return f"{type(error).__name__}, but rows changed"
    return "refused"


async def attack(
    world: World, method: Method, name: str, operation: Callable[..., Any], base: dict[str, Any]
) -> str:
    """Call `operation` with one hostile value and return how that ended."""
    before = world.version()
    try:
        await call(operation, base | {method.argument: HOSTILE[name]()})
    except (LeaseUnavailable, LockHeld) as error:
        # It drew a ticket and gave it back.
        return "taken" if method.argument == "wait" else ended(world, before, error)
    except MetastoreError as error:
        listed = documented(method.table, method.verb)
        if not listed.intersection(kind.__name__ for kind in type(error).__mro__):
            return f"{type(error).__name__}, which its docstring does not list"
        if isinstance(error, InvalidValue) and error.column not in named(method):
            return f"InvalidValue, which names {error.column}"
        return ended(world, before, error)
    except FOLDER.get(method, ()):
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return "taken"


DOCUMENTED = sorted(
    {
        (it.table, it.verb)
        for methods in METHODS.values()
        for it in methods
        if f"{it.table}.{it.verb}" not in INTERNAL
    }
)


def documented(table: str, verb: str) -> set[str]:
    """Return the errors that the docstring of a method lists."""
    [repository] = [it for it in repository_types() if it.table == table]
    doc = inspect.getdoc(getattr(repository, verb)) or ""
    return set(re.findall(r"^    (\w+):", doc.partition("Raises:")[2], re.MULTILINE))


@pytest.mark.parametrize(("table", "verb"), DOCUMENTED)
def test_docstring__tells_that_an_argument_may_be_refused(table: str, verb: str) -> None:
    assert documented(table, verb) & {"InvalidValue"}


OWN_ID = [it for methods in METHODS.values() for it in methods if it.argument == "id"]


@pytest.mark.parametrize("method", OWN_ID, ids=str)
async def test_id__of_a_callers_own_is_never_replaced_by_a_fresh_one(
    filled: bytes, tmp_path: Path, method: Method
) -> None:
    async with opened(filled, tmp_path) as world:
        operation = getattr(getattr(world.store, method.table), method.verb)
        base = baseline(world, method.table, method.verb)
        arguments = {it: base[it] for it in inspect.signature(operation).parameters}
        before = world.version()
        empties: tuple[Any, ...] = ("", 0, [], False)
        for empty in empties:
            with pytest.raises(InvalidValue) as refused:
                await operation(**arguments | {"id": empty})
            assert refused.value.column == "id"
        assert world.version() == before


async def test_id__of_one_event_of_many_is_never_replaced_by_a_fresh_one(
    filled: bytes, tmp_path: Path
) -> None:
    async with opened(filled, tmp_path) as world:
        before = world.version()
        session_id = world.rows["sessions"][0]["id"]
        events = [NewEvent("t", "one"), NewEvent("t", "two", id="")]
        with pytest.raises(InvalidValue) as refused:
            await world.store.events.append_many(session_id, events)
        assert refused.value.column == "id"
        assert world.version() == before


@pytest.mark.parametrize("table", sorted(it for it, methods in METHODS.items() if methods))
async def test_arguments__are_taken_or_refused_without_a_trace(
    filled: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    table: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, "METASTORE_SECRET_KEYS": "a" * 64})
    ends: Counter[str] = Counter()
    faults: list[str] = []
    async with opened(filled, tmp_path) as world:
        for method in METHODS[table]:
            if f"{table}.{method.verb}" in INTERNAL:
                continue
            operation = getattr(getattr(world.store, table), method.verb)
            base = {
                it: value
                for it in inspect.signature(operation).parameters
                for value in [baseline(world, table, method.verb)[it]]
            }
            for name in HOSTILE:
                end = await attack(world, method, name, operation, base)
                ends[end if end in ("taken", "refused") else "fault"] += 1
                if end not in ("taken", "refused"):
                    faults.append(f"{method} with {name}: {end}")
    record_property("figures", f"{len(METHODS[table])} arguments: {dict(ends)}")
    assert not faults, "\n".join(faults)
    assert ends["refused"] > ends["taken"]
