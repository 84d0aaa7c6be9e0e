"""Whatever is handed in comes back equal, or is refused with a typed error and leaves no trace."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
import subprocess
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from metastore import (
    InvalidReference,
    InvalidValue,
    MetadataStore,
    MetastoreError,
    NewEvent,
    NotFound,
    SchemaOutdated,
    StoreCorrupt,
    StoreReadOnly,
    TokenRejected,
)
from metastore.codec import MAX_JSON, MAX_JSON_DEPTH, MAX_TEXT
from metastore.paging import FIRST_ID
from metastore.testing import Clock, Factories
from metastore.testing.template import write_template

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from metastore import Command, Lease, Project, Repository, Session, Step, Worktree
    from metastore.codec import Row

HOUR = timedelta(hours=1)
OTHER_ID = "01900000-0000-7000-8000-000000000000"


class Rows(NamedTuple):
    """A row of each kind, for the calls to refer to."""

    repository: Repository
    worktree: Worktree
    lease: Lease
    project: Project
    session: Session
    step: Step
    command: Command
    token: str


class World(NamedTuple):
    """A store with a row of each kind."""

    store: MetadataStore
    rows: Rows
    look: sqlite3.Connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def version(self) -> int:
        """Return a number that changes whenever the store commits something."""
        [version] = self.look.execute("PRAGMA data_version").fetchone()
        return int(version)


async def _rows(store: MetadataStore) -> Rows:
    make = Factories(store)
    repository = await make.repository()
    worktree = await make.worktree(repository_id=repository.id)
    taken = await make.worktree(repository_id=repository.id)
    lease = await store.worktrees.reserve(taken, owner="ann", ttl=HOUR)
    session = await store.sessions.create(session_type="test_generation", project_path="/p")
    project = await store.projects.find_by_path("/p")
    assert project is not None
    step = await make.step(session_id=session.id)
    await store.steps.start(step.id)
    command = await make.command(session_id=session.id)
    await store.commands.start(command.id)
    await store.sessions.start(session.id)
    issued = await make.token("sessions:read")
    return Rows(repository, worktree, lease, project, session, step, command, issued.token)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Rows]:
    """The database of a world, and its rows: made once, and copied for each test."""
    path = tmp_path_factory.mktemp("world") / "metadata.db"
    write_template(path)

    async def make() -> Rows:
        async with MetadataStore.open(f"sqlite:///{path}", clock=Clock()) as store:
            return await _rows(store)

    rows = asyncio.run(make())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes(), rows


@pytest.fixture
async def world(image: tuple[bytes, Rows], tmp_path: Path) -> AsyncIterator[World]:
    path = tmp_path / "metadata.db"
    content, rows = image
    path.write_bytes(content)
    path.chmod(0o600)
    clock = Clock()
    clock.advance(timedelta(minutes=1))
    async with MetadataStore.open(f"sqlite:///{path}", clock=clock) as store:
        with contextlib.closing(sqlite3.connect(path)) as look:
            yield World(store, rows, look)


# Each of these writes one row with the value of one column, and returns it as it is read back.

Write = Callable[..., Awaitable["Row"]]


def _any(values: Any) -> Any:
    return values


async def repository(world: World, **values: Any) -> Row:
    values = {"name": "n", "remote_url": "u"} | values
    row = await world.store.repositories.create(**values)
    return await world.store.repositories.get(row.id)


async def repository_update(world: World, **values: Any) -> Row:
    values = {"remote_url": "u", "default_branch": "b", "metadata": {}} | values
    row = await world.store.repositories.update(world.repository.id, **values)
    return await world.store.repositories.get(row.id)


async def worktree(world: World, **values: Any) -> Row:
    values = {"repository_id": world.repository.id, "path": "/w"} | values
    row = await world.store.worktrees.create(**values)
    return await world.store.worktrees.get(row.id)


async def checkout(world: World, **values: Any) -> Row:
    values = {"branch": "b", "commit_sha": "c"} | values
    await world.store.worktrees.record_checkout(world.lease, **values)
    return await world.store.worktrees.get(world.lease.worktree_id)


async def acquire(world: World, *, lease_owner: Any = "o", ttl: Any = HOUR) -> Row:
    lease = await world.store.worktrees.acquire(world.repository.id, owner=lease_owner, ttl=ttl)
    return await world.store.worktrees.get(lease.worktree_id)


async def reserve(world: World, *, lease_owner: Any = "o", ttl: Any = HOUR) -> Row:
    await world.store.worktrees.reserve(world.worktree, owner=lease_owner, ttl=ttl)
    return await world.store.worktrees.get(world.worktree.id)


async def renew(world: World, *, ttl: Any) -> Row:
    await world.store.worktrees.renew(world.lease, ttl=ttl)
    return await world.store.worktrees.get(world.worktree.id)


async def lock(world: World, **values: Any) -> Row:
    values = {"project_id": world.project.id, "session_id": world.session.id, "ttl": HOUR} | values
    row = await world.store.project_locks.acquire(**_any(values))
    return await world.store.project_locks.get(row.id)


async def project(world: World, **values: Any) -> Row:
    row = await world.store.projects.ensure(**({"path": "/other"} | values))
    return await world.store.projects.get(row.id)


async def session(world: World, **values: Any) -> Row:
    values = {"session_type": "test_generation", "project_path": "/p"} | values
    row = await world.store.sessions.create(**values)
    return await world.store.sessions.get(row.id)


async def session_end(world: World, **values: Any) -> Row:
    end = world.store.sessions.fail if "error_message" in values else world.store.sessions.complete
    await end(world.session.id, **values)
    return await world.store.sessions.get(world.session.id)


async def step(world: World, **values: Any) -> Row:
    row = await world.store.steps.create(**({"session_id": world.session.id, "name": "n"} | values))
    return await world.store.steps.get(row.id)


async def step_end(world: World, **values: Any) -> Row:
    end = world.store.steps.fail if "error_message" in values else world.store.steps.complete
    await end(world.step.id, **values)
    return await world.store.steps.get(world.step.id)


async def command(world: World, **values: Any) -> Row:
    values = {"session_id": world.session.id, "argv": ["a"], "working_directory": "/"} | values
    row = await world.store.commands.create(**values)
    return await world.store.commands.get(row.id)


async def command_failed(world: World, **values: Any) -> Row:
    await world.store.commands.fail(world.command.id, **values)
    return await world.store.commands.get(world.command.id)


async def command_late(world: World, **values: Any) -> Row:
    await world.store.commands.time_out(world.command.id, **values)
    return await world.store.commands.get(world.command.id)


async def command_end(world: World, **values: Any) -> Row:
    await world.store.commands.finish(world.command.id, **values)
    return await world.store.commands.get(world.command.id)


async def artifact(world: World, **values: Any) -> Row:
    values = {"artifact_type": "log", "name": "n", "content_path": "c"} | values
    row = await world.store.artifacts.create(**_any({"session_id": world.session.id} | values))
    return await world.store.artifacts.get(row.id)


async def event(world: World, **values: Any) -> Row:
    values = {"session_id": world.session.id, "event_type": "t", "message": "m"} | values
    row = await world.store.events.append(**values)
    return await world.store.events.get(row.id)


async def last_of_many(world: World, **values: Any) -> Row:
    good, last = NewEvent("t", "m"), NewEvent(**({"event_type": "t", "message": "m"} | values))
    ids = await world.store.events.append_many(world.session.id, [good, good, last])
    return await world.store.events.get(ids[-1])


async def checkpoint(world: World, **values: Any) -> Row:
    values = {"session_id": world.session.id, "state": {}} | values
    row = await world.store.debugger_state.checkpoint(**values)
    return await world.store.debugger_state.get(row.id)


async def token(world: World, **values: Any) -> Row:
    issued = await world.store.auth_tokens.issue(**({"user_name": "u", "name": "n"} | values))
    return await world.store.auth_tokens.get(issued.record.id)


TEXT: list[tuple[Write, str]] = [
    (repository, "name"),
    (repository, "remote_url"),
    (repository, "default_branch"),
    (repository_update, "remote_url"),
    (worktree, "path"),
    (worktree, "branch"),
    (worktree, "commit_sha"),
    (checkout, "branch"),
    (checkout, "commit_sha"),
    (acquire, "lease_owner"),
    (reserve, "lease_owner"),
    (project, "path"),
    (project, "name"),
    (session, "project_path"),
    (session_end, "error_message"),
    (step, "name"),
    (step_end, "error_message"),
    (command, "working_directory"),
    (command_failed, "error_message"),
    (command_late, "error_message"),
    (artifact, "name"),
    (artifact, "content_path"),
    (event, "event_type"),
    (event, "message"),
    (last_of_many, "message"),
    (checkpoint, "label"),
    (token, "user_name"),
    (token, "name"),
]
OBJECT: list[tuple[Write, str]] = [
    (repository, "metadata"),
    (repository_update, "metadata"),
    (project, "config"),
    (session, "config"),
    (session, "metadata"),
    (artifact, "metadata"),
    (event, "context"),
    (last_of_many, "context"),
]
ANY: list[tuple[Write, str]] = [
    (session_end, "result"),
    (step, "input"),
    (step_end, "output"),
    (checkpoint, "state"),
]
ID: list[tuple[Write, str]] = [
    (repository, "id"),
    (worktree, "id"),
    (worktree, "repository_id"),
    (session, "id"),
    (session, "repository_id"),
    (session, "worktree_id"),
    (session, "auth_token_id"),
    (step, "id"),
    (step, "session_id"),
    (command, "id"),
    (command, "session_id"),
    (artifact, "id"),
    (artifact, "session_id"),
    (artifact, "command_id"),
    (event, "id"),
    (event, "session_id"),
    (last_of_many, "id"),
    (checkpoint, "id"),
    (checkpoint, "session_id"),
    (lock, "project_id"),
    (lock, "session_id"),
    (token, "id"),
]
INTEGER: list[tuple[Write, str]] = [
    (step, "sequence"),
    (artifact, "size_bytes"),
    (command_end, "exit_code"),
]
ENUMERATION: list[tuple[Write, str]] = [
    (session, "session_type"),
    (session, "mode"),
    (artifact, "artifact_type"),
    (event, "level"),
    (last_of_many, "level"),
]

INJECTIONS = {
    "quote": "'; DROP TABLE sessions; --",
    "double-quote": '" OR ""="',
    "parameters": ":id ? ?1 @id $id %s {0} %(id)s",
    "backslashes": "\\' \\\" \\x00 \\u0000 \\",
    "comment": "/* */ -- \r\n\t;",
    "wild": "%_*?[a-z]^$\u2028",
    "unicode": "é e\u0301 \u202e \U0001f600 \uffff \x7f\x01",
}
REFUSED_TEXT = {
    "nul": "a\0b",
    "surrogate": "a\ud800b",
    "surrogate-pair": "\ud83d\ude00",
    "bytes": b"text",
    "number": 7,
    "oversize": "x" * (MAX_TEXT + 1),
}
_CYCLE: list[Any] = []
_CYCLE.append(_CYCLE)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


REFUSED_JSON = {
    "nan": [[float("nan")]],
    "infinity": {"a": [float("inf")]},
    "minus-infinity": -float("inf"),
    "surrogate": {"a": ["\ud800"]},
    "surrogate-key": {"\udfff": 1},
    "nul": ["\0"],
    "nul-key": {"a\0": 1},
    "nul-behind-backslash": "\\\0",
    "beyond-64-bits": [1 << 63],
    "below-64-bits": {"a": -(1 << 63) - 1},
    "huge-integer": 10**400,
    "tuple": [(1, 2)],
    "set": {1},
    "bytes": b"{}",
    "datetime": datetime(2026, 1, 1, tzinfo=UTC),
    "naive-datetime": datetime(2026, 1, 1),  # noqa: DTZ001 - that it is naive is the fault
    "number-keys": {1: 2},
    "object": object(),
    "cycle": _CYCLE,
    "too-deep": nested(MAX_JSON_DEPTH + 1),
    "bottomless": nested(100_000),
    "long-number-below": [[[10**18, 10**19]]],
    "oversize": "x" * MAX_JSON,
}
EXACT_JSON = {
    "injections": {text: [text] for text in INJECTIONS.values()},
    "integers": [(1 << 63) - 1, -(1 << 63), 0, -1],
    "floats": [0.1, 1e308, 5e-324, -0.0, 1.0, 1 / 3],
    "constants": [True, False, None, "", [], {}],
    "empty-key": {"": {"": [{}]}},
    "escapes": "\\u0000 \\\\u0000 \x01 \u2028",
    "numbers-as-text": ["9223372036854775808", "NaN", "1e999"],
    "deep": nested(MAX_JSON_DEPTH - 1),
}
REFUSED_ID = {
    "empty": "",
    "word": "session",
    "number": 5,
    "upper-case": OTHER_ID.upper().replace("9", "A"),
    "braces": "{" + OTHER_ID + "}",
    "no-hyphens": OTHER_ID.replace("-", ""),
    "nil": FIRST_ID,
    "no-hex": OTHER_ID.replace("0", "g"),
    "newline": OTHER_ID + "\n",
    "space": " " + OTHER_ID,
    "injection": "' OR '1'='1",
    "nul": OTHER_ID[:-1] + "\0",
    "full-width-digit": OTHER_ID[:-1] + "\uff10",
}
REFUSED_INTEGER = {
    "beyond-64-bits": 1 << 63,
    "below-64-bits": -(1 << 63) - 1,
    "huge": 10**400,
    "boolean": True,
    "float": 1.0,
    "nan": float("nan"),
    "text": "1",
}
REFUSED_ENUMERATION = {
    "unknown": "nonsense",
    "upper-case": "DEBUG",
    "empty": "",
    "number": 1,
    "list": ["debug"],
    "nul": "debug\0",
}
REFUSED_SPAN = {
    "zero": timedelta(0),
    "negative": -HOUR,
    "below-a-millisecond": timedelta(microseconds=999),
    "too-long": timedelta(days=8),
    "largest": timedelta.max,
    "number": 60,
    "nothing": None,
}


class Case(NamedTuple):
    """A value for one column: refused with `error`, or stored as it is if that is None."""

    name: str
    write: Write
    column: str
    value: Any
    error: type[MetastoreError] | None = InvalidValue


def _table() -> Iterator[Case]:
    def cases(
        fields: list[tuple[Write, str]],
        values: dict[str, Any],
        error: type[MetastoreError] | None = InvalidValue,
    ) -> Iterator[Case]:
        for write, column in fields:
            for name, value in values.items():
                yield Case(f"{write.__name__}-{column}-{name}", write, column, value, error)

    def one(write: Write, column: str, name: str, value: Any, error: Any = InvalidValue) -> Case:
        return Case(f"{write.__name__}-{column}-{name}", write, column, value, error)

    yield from cases(TEXT, INJECTIONS, None)
    yield from cases(TEXT, REFUSED_TEXT)
    objects = {name: {"a": value} for name, value in REFUSED_JSON.items()}
    yield from cases(OBJECT, objects | {"list": [], "text": "{}", "number": 1})
    yield from cases(OBJECT, {name: {"a": value} for name, value in EXACT_JSON.items()}, None)
    yield from cases(ANY, REFUSED_JSON)
    yield from cases(ANY, EXACT_JSON, None)
    yield from cases(ID, REFUSED_ID)
    references = [field for field in ID if field[1] != "id"]
    references.remove((checkpoint, "session_id"))
    yield from cases(references, {"unknown": OTHER_ID}, InvalidReference)
    yield one(checkpoint, "session_id", "unknown", OTHER_ID, NotFound)
    yield from cases(INTEGER, REFUSED_INTEGER)
    yield from cases(ENUMERATION, REFUSED_ENUMERATION)
    for write in (acquire, reserve, renew, lock):
        yield from cases([(write, "ttl")], REFUSED_SPAN)
    yield one(artifact, "size_bytes", "largest", (1 << 63) - 1, None)
    yield one(artifact, "size_bytes", "negative", -1)
    yield one(command_end, "exit_code", "smallest", -(1 << 63), None)
    yield one(command_end, "exit_code", "nothing", None)
    yield one(session_end, "error_message", "largest", "é" * MAX_TEXT, None)
    yield one(repository, "name", "empty", "")
    yield one(repository, "name", "longest", "é" * 255, None)
    yield one(repository, "name", "too-long", "x" * 256)
    yield one(event, "event_type", "too-long", "x" * 51)
    yield one(step, "name", "too-long", "x" * 101)
    yield one(project, "path", "too-long", "/" * 4097)
    yield one(
        worktree, "environment_hashes", "injections", {v: v for v in INJECTIONS.values()}, None
    )
    yield one(worktree, "environment_hashes", "numbers", {"a": 1})
    yield one(worktree, "environment_hashes", "nul", {"a": "\0"})
    yield one(worktree, "environment_hashes", "surrogate", {"\ud800": "a"})
    yield one(checkout, "environment_hashes", "numbers", {"a": 1})
    yield one(command, "argv", "injections", list(INJECTIONS.values()), None)
    for name, argv in {
        "empty": [], "text": "ls", "bytes": b"ls", "numbers": [1], "nul": ["a", "\0"],
        "surrogate": ["\ud800"], "nothing": None, "set": {"ls"}, "nested": [["ls"]],
    }.items():  # fmt: skip
        yield one(command, "argv", name, argv)
    for name, log_path in {
        "relative": "a.log", "climbing": "../a", "nul": "/a\0", "empty": "", "bytes": b"/a"
    }.items():  # fmt: skip
        yield one(command, "log_path", name, log_path)
    yield one(command, "log_path", "injection", "/'; --\n%00", None)
    for name, digest in {
        "short": "a" * 63, "upper-case": "A" * 64, "no-hex": "g" * 64, "newline": "a" * 64 + "\n"
    }.items():  # fmt: skip
        yield one(artifact, "sha256", name, digest)
    for name, scopes in {
        "text": "*", "spaces": ["a b"], "upper-case": ["A"], "injection": ["' OR 1"],
        "nul": ["a\0"], "number": [1], "star-inside": ["a:*:b"], "long": ["a" * 256],
    }.items():  # fmt: skip
        yield one(token, "scopes", name, scopes)
    yield one(token, "scopes", "exact", ["sessions:read", "a:*", "*"], None)
    yield from cases(
        [(token, "ttl")], {k: v for k, v in REFUSED_SPAN.items() if v and k != "too-long"}
    )


CASES = list(_table())


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name) for case in CASES if case.error is None]
)
async def test_value__comes_back_equal(world: World, case: Case) -> None:
    before = world.version()
    row = await case.write(world, **{case.column: case.value})
    assert row[case.column] == case.value
    if case.column != "environment_hashes":  # which are stored in the order of their names
        assert repr(row[case.column]) == repr(case.value)
    assert world.version() != before


REFUSED: dict[tuple[str, str], list[Case]] = {}
for _case in CASES:
    if _case.error is not None:
        REFUSED.setdefault((_case.write.__name__, _case.column), []).append(_case)


# What is refused leaves no trace, so that one world does for all that a column refuses.
@pytest.mark.parametrize(
    "cases", [pytest.param(cases, id=f"{of}-{column}") for (of, column), cases in REFUSED.items()]
)
async def test_value__is_refused_and_leaves_no_trace(world: World, cases: list[Case]) -> None:
    before = world.version()
    faults = []
    for case in cases:
        try:
            await case.write(world, **{case.column: case.value})
        except MetastoreError as error:
            if type(error) is not case.error:
                faults.append(f"{case.name}: {error!r}")
            if isinstance(error, InvalidValue) and (
                error.column != case.column or not str(error).isprintable()
            ):
                faults.append(f"{case.name}: {error!r}")
        else:
            faults.append(f"{case.name}: taken")
        if world.version() != before:
            before = world.version()
            faults.append(f"{case.name}: left a trace")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 491, 984, 1_001, 2_001, 5_000])
async def test_json__nested_too_deep_leaves_no_trace(world: World, depth: int) -> None:
    before = world.version()
    with pytest.raises(InvalidValue, match="nested at most"):
        await checkpoint(world, state=nested(depth))
    assert world.version() == before


async def test_json__of_any_depth_that_is_taken_is_read_on_a_deep_stack(world: World) -> None:
    await checkpoint(world, state=nested(MAX_JSON_DEPTH))
    await checkpoint(world, state={"a": "b"})

    async def read(frames: int) -> list[Any]:
        if frames:
            return await read(frames - 1)
        return (await world.store.debugger_state.list_by_session(world.session.id)).items

    assert [row.state for row in await read(500)] == [nested(MAX_JSON_DEPTH), {"a": "b"}]


def _ten_times(inner: Any, _: int) -> Any:
    return [inner] * 10


HUGE: dict[str, Callable[[], Any]] = {
    "one text": lambda: "x" * (300 << 20),
    "one list": lambda: ["x" * 1_000] * 300_000,
    "a list of lists": lambda: [["x" * 1_000] * 1_000] * 300,
    "many numbers": lambda: [1] * 30_000_000,
    "one object in itself, again and again": lambda: functools.reduce(
        _ten_times, range(100), ["x"]
    ),
    "keys": lambda: {"k" * 100_000 + str(n): n for n in range(200)},
}


@pytest.mark.parametrize("make", HUGE.values(), ids=HUGE)
async def test_json__that_is_huge_is_refused_before_it_is_encoded(
    world: World, make: Callable[[], Any]
) -> None:
    before = world.version()
    state = make()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidValue, match="bytes as JSON"):
            await checkpoint(world, state=state)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
    assert world.version() == before


# Calls that write nothing whatever they are handed.

Call = Callable[[World], Awaitable[object]]
LOOKUPS: dict[str, Callable[[MetadataStore, Any], Awaitable[object]]] = {
    "repositories.get": lambda store, id_: store.repositories.get(id_),
    "repositories.delete": lambda store, id_: store.repositories.delete(id_),
    "worktrees.get": lambda store, id_: store.worktrees.get(id_),
    "worktrees.delete": lambda store, id_: store.worktrees.delete(id_),
    "worktrees.retire": lambda store, id_: store.worktrees.retire(id_),
    "projects.get": lambda store, id_: store.projects.get(id_),
    "projects.delete": lambda store, id_: store.projects.delete(id_),
    "sessions.get": lambda store, id_: store.sessions.get(id_),
    "sessions.start": lambda store, id_: store.sessions.start(id_),
    "sessions.delete": lambda store, id_: store.sessions.delete(id_),
    "steps.start": lambda store, id_: store.steps.start(id_),
    "commands.cancel": lambda store, id_: store.commands.cancel(id_),
    "artifacts.delete": lambda store, id_: store.artifacts.delete(id_),
    "events.get": lambda store, id_: store.events.get(id_),
    "debugger_state.latest": lambda store, id_: store.debugger_state.latest(id_),
    "project_locks.get": lambda store, id_: store.project_locks.get(id_),
    "auth_tokens.revoke": lambda store, id_: store.auth_tokens.revoke(id_),
    "auth_tokens.rotate": lambda store, id_: store.auth_tokens.rotate(id_),
}
CURSORS: dict[str, Callable[..., Awaitable[object]]] = {
    "sessions.list_recent": lambda world, **page: world.store.sessions.list_recent(**page),
    "sessions.list_by_status": lambda world, **page: world.store.sessions.list_by_status(
        "pending", **page
    ),
    "sessions.list_active": lambda world, **page: world.store.sessions.list_active(**page),
    "repositories.list": lambda world, **page: world.store.repositories.list(**page),
    "project_locks.list_expired": lambda world, **page: world.store.project_locks.list_expired(
        **page
    ),
    "events.list": lambda world, **page: world.store.events.list(**page),
    "steps.list_by_session": lambda world, **page: world.store.steps.list_by_session(
        world.session.id, **page
    ),
}
REFUSED_CURSOR = {
    "word": "nonsense",
    "before-year-1": "0001-01-01T00:00:00.000+14:00/" + OTHER_ID,
    "after-year-9999": "9999-12-31T23:00:00.000-12:00/" + OTHER_ID,
    "bytes": b"2026-01-01T00:00:00.000Z/" + OTHER_ID.encode(),
    "empty": "",
    "no-date": "2026-13-45T00:00:00.000Z/" + OTHER_ID,
    "naive": "2026-01-01T00:00:00/" + OTHER_ID,
    "injection": "' OR 1=1 --",
    "nul": "\0",
    "list": [1],
    "float": 1.5,
}
REFUSED_TOKEN = {
    "empty": "", "word": "secret", "injection": "' OR '1'='1", "nul": "mst_\0", "number": 5,
    "nothing": None, "surrogate": "mst_\ud800", "long": "mst_" + "a" * 100_000,
    "well-formed": "mst_" + "0" * 46,
}  # fmt: skip


def _calls() -> Iterator[tuple[str, Call, type[MetastoreError]]]:
    for name, look_up in LOOKUPS.items():
        values = {k: REFUSED_ID[k] for k in ("empty", "number", "upper-case", "injection", "nul")}
        for kind, value in (values | {"nothing": None}).items():
            yield (
                f"{name}-{kind}",
                lambda world, look_up=look_up, value=value: look_up(world.store, value),  # type: ignore[misc]
                InvalidValue,
            )
        yield (
            f"{name}-unknown",
            lambda world, look_up=look_up: look_up(world.store, OTHER_ID),  # type: ignore[misc]
            NotFound,
        )
    for name, read in CURSORS.items():
        pages = [("after", kind, value) for kind, value in REFUSED_CURSOR.items()]
        pages += [
            ("limit", str(value), value)
            for value in (0, -1, 1_001, 1 << 64, True, 1.0, "5", float("nan"))
        ]
        for parameter, kind, value in pages:
            yield (
                f"{name}-{parameter}-{kind}",
                lambda world, read=read, page={parameter: value}: read(world, **page),  # type: ignore[misc]
                InvalidValue,
            )
    for kind, value in REFUSED_TOKEN.items():
        yield (
            f"auth_tokens.verify-{kind}",
            lambda world, value=value: world.store.auth_tokens.verify(value),  # type: ignore[misc]
            TokenRejected,
        )
    for scope in ("", "*", "a:*", "A", "a b", "a:", "' OR 1", "a\0", 5):
        yield (
            f"auth_tokens.verify-scope-{scope!r}",
            lambda world, scope=scope: world.store.auth_tokens.verify(world.token, scope),  # type: ignore[misc]
            InvalidValue,
        )


CALLS = list(_calls())


@pytest.mark.parametrize("table", sorted({name.partition(".")[0] for name, _, _ in CALLS}))
async def test_call__is_refused_and_leaves_no_trace(world: World, table: str) -> None:
    before = world.version()
    faults = []
    for name, call, expected in CALLS:
        if name.partition(".")[0] != table:
            continue
        try:
            await call(world)
        except expected:
            pass
        except MetastoreError as error:
            faults.append(f"{name}: {error!r}")
        else:
            faults.append(f"{name}: taken")
        if world.version() != before:
            before = world.version()
            faults.append(f"{name}: left a trace")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("text", INJECTIONS.values(), ids=INJECTIONS)
async def test_search__takes_text_literally(world: World, text: str) -> None:
    assert await world.store.repositories.find_by_name(text) is None
    assert await world.store.projects.find_by_path(text) is None
    assert await world.store.worktrees.find_by_path(text) is None
    assert (await world.store.sessions.list_by_project(text)).items == []
    assert (await world.store.auth_tokens.list_by_user(text)).items == []


async def test_clock__naive_is_refused(store_url: str, tmp_path: Path) -> None:
    async with MetadataStore.open(store_url, clock=lambda: datetime(2026, 1, 1)) as store:  # noqa: DTZ001
        with pytest.raises(InvalidValue):
            await store.repositories.create(name="a", remote_url="u")
        with pytest.raises(InvalidValue):
            await store.projects.ensure(path="/p")
        assert (await store.repositories.list()).items == []


def test_table__is_as_long_as_promised(record_property: Callable[[str, object], None]) -> None:
    kinds = Counter("equal" if case.error is None else "refused" for case in CASES)
    kinds["refused"] += len(CALLS)
    kinds["names of files"] = len(NAMES)
    kinds["files that are no store"] = len(PLACES)
    record_property("figures", dict(kinds))
    assert kinds.total() >= 150
    assert kinds["equal"] > 100


# --- opening -----------------------------------------------------------------------------------

NAMES = [
    "a#b.db", "a?b=c.db", "a?mode=ro.db", "100%.db", "%2e%2e%2f.db", "a%00b.db", "with space.db",
    "ünï-\U0001f600.db", "e\u0301.db", "'quote\".db", "a;b.db", "new\nline.db", "-dash.db",
    "file:x.db", ":memory:", "a&b=c.db", "a\\b.db", "no extension", "x" * 120, "..db",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_open__the_name_is_taken_literally(tmp_path: Path, name: str) -> None:
    folder = tmp_path / f"in {name}"
    url = f"sqlite:///{folder / name}"
    async with MetadataStore.open(url, migrate=True) as store:
        written = await store.repositories.create(name="a", remote_url="u")
    async with MetadataStore.open(url) as store:
        assert await store.repositories.get(written.id) == written
    assert [path.name for path in folder.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [folder]


def _database(path: Path) -> Path:
    """Make a metastore of many pages at `path`."""
    write_template(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO repositories (id, name, remote_url) VALUES (?, ?, ?)",
            [(f"{n:036}", f"name-{n}", "u" * 500) for n in range(200)],
        )
    return path


def _empty(path: Path) -> None:
    path.touch()


def _foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE theirs (a)")


def _foreign_with_our_tables(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE sessions (a)")
        connection.execute("CREATE TABLE _yoyo_migration (migration_id)")


def _text(path: Path) -> None:
    path.write_text("no database at all\n" * 1_000)


def _noise(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(8192))


def _truncated_header(path: Path) -> None:
    os.truncate(_database(path), 50)


def _truncated(path: Path) -> None:
    os.truncate(_database(path), 4096 * 3 + 100)


def _damaged_schema(path: Path) -> None:
    with _database(path).open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(3_000))


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/null")


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere.db"))


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _missing(_: Path) -> None:
    pass


PLACES: dict[Callable[[Path], None], type[MetastoreError]] = {
    _empty: SchemaOutdated,
    _foreign: StoreCorrupt,
    _foreign_with_our_tables: StoreCorrupt,
    _text: StoreCorrupt,
    _noise: StoreCorrupt,
    _zeros: StoreCorrupt,
    _truncated_header: StoreCorrupt,
    _truncated: StoreCorrupt,
    _damaged_schema: StoreCorrupt,
    _directory: StoreCorrupt,
    _fifo: StoreCorrupt,
    _device: StoreCorrupt,
    _dangling: SchemaOutdated,
    _loop: SchemaOutdated,
    _missing: SchemaOutdated,
}


def _look(folder: Path) -> dict[str, object]:
    return {
        path.name: path.read_bytes() if path.is_file() else path.lstat().st_mode
        for path in sorted(folder.iterdir())
    }


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
async def test_open__what_is_no_store_is_named_and_left_alone(
    tmp_path: Path, place: Callable[[Path], None]
) -> None:
    place(tmp_path / "metadata.db")
    before = _look(tmp_path)
    with pytest.raises(PLACES[place]) as caught:
        await MetadataStore.open(f"sqlite:///{tmp_path}/metadata.db")
    assert type(caught.value) is PLACES[place]
    assert _look(tmp_path) == before


@pytest.mark.parametrize(
    "place",
    [place for place in PLACES if place not in (_empty, _missing)],
    ids=lambda place: place.__name__,
)
async def test_migrate__what_is_no_store_is_named_and_left_alone(
    tmp_path: Path, place: Callable[[Path], None]
) -> None:
    place(tmp_path / "metadata.db")
    before = _look(tmp_path)
    with pytest.raises(MetastoreError):
        await MetadataStore.open(f"sqlite:///{tmp_path}/metadata.db", migrate=True)
    assert _look(tmp_path) == before


async def test_open__an_empty_file_becomes_a_store_when_asked(tmp_path: Path) -> None:
    (tmp_path / "metadata.db").touch()
    async with MetadataStore.open(f"sqlite:///{tmp_path}/metadata.db", migrate=True) as store:
        await store.repositories.create(name="a", remote_url="u")


@pytest.mark.parametrize("migrate", [False, True])
@pytest.mark.parametrize(
    "name",
    ["x" * 300, "a/" * 2_100, "\udc80.db", "file/below.db"],
    ids=["too-long", "too-deep", "undecodable", "below-a-file"],
)
async def test_open__a_name_that_no_file_can_have(tmp_path: Path, name: str, migrate: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MetastoreError):
        await MetadataStore.open(f"sqlite:///{tmp_path}/{name}", migrate=migrate)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_open__a_symlink_is_the_store_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "real.db"
    write_template(real)
    link = tmp_path / "link.db"
    link.symlink_to(real)
    async with MetadataStore.open(f"sqlite:///{link}", migrate=True) as store:
        written = await store.repositories.create(name="a", remote_url="u")
        async with MetadataStore.open(f"sqlite:///{real}") as other:
            assert await other.repositories.get(written.id) == written
            await other.repositories.create(name="b", remote_url="u")
        assert await store.repositories.find_by_name("b") is not None
    assert link.is_symlink()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["link.db"]


async def test_damaged_page__is_told_and_the_rest_can_be_read(tmp_path: Path) -> None:
    path = _database(tmp_path / "metadata.db")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [size] = connection.execute("PRAGMA page_size").fetchone()
        leaves = connection.execute(
            "SELECT pageno FROM dbstat WHERE name = 'repositories' AND pagetype = 'leaf'"
        ).fetchall() if _has_dbstat(connection) else []  # fmt: skip
    page = leaves[0][0] if leaves else path.stat().st_size // size - 3
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)
    before = path.read_bytes()
    async with MetadataStore.open(f"sqlite:///{path}") as store:
        with pytest.raises(StoreCorrupt):
            for _ in range(2):
                await store.repositories.list(limit=1_000)
        assert (await store.health(integrity=True)).damage
        assert (await store.projects.list()).items == []
    assert path.read_bytes() == before


def _has_dbstat(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("SELECT 1 FROM dbstat LIMIT 1").fetchall()
    except sqlite3.OperationalError:
        return False
    return True


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no writes, with a store in it; modes do not stop root."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    _database(folder / "metadata.db")
    bind = ["mount", "--bind", str(folder), str(folder)]
    if os.geteuid() != 0 or subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("a read-only mount takes the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("migrate", [False, True])
@pytest.mark.parametrize("name", ["metadata.db", "absent.db"])
async def test_open__a_read_only_file_system_is_named(
    read_only_folder: Path, name: str, migrate: bool
) -> None:
    error = SchemaOutdated if name == "absent.db" and not migrate else StoreReadOnly
    with pytest.raises(error):
        await MetadataStore.open(f"sqlite:///{read_only_folder}/{name}", migrate=migrate)
    assert [path.name for path in read_only_folder.iterdir()] == ["metadata.db"]


async def test_open__a_read_only_file_is_named(tmp_path: Path) -> None:
    path = _database(tmp_path / "metadata.db")
    path.chmod(0o400)
    if os.access(path, os.W_OK):
        pytest.skip("modes do not stop this user")
    with pytest.raises(StoreReadOnly):
        await MetadataStore.open(f"sqlite:///{path}")
