from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from metastore import (
    AlreadyExists,
    Finding,
    InvalidReference,
    InvalidValue,
    MetadataStore,
    NewEvent,
    NotFound,
    Repository,
    Session,
)
from metastore.audit import reading, trail, verification
from metastore.audit.links import Chain, Entry, EventsJudge, State, encode, link_hash
from metastore.cli import main
from metastore.codec import new_id, timestamp
from metastore.paging import MAX_PAGE
from metastore.repositories import audit_chains
from metastore.rows import FEW_ROWS
from metastore.sealing import Signature, Signer, generate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def shell(store_url: str) -> Iterator[sqlite3.Connection]:
    """A connection behind the store's back, without the triggers that guard history."""
    path = store_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        yield connection


@pytest.fixture(autouse=True, params=[3, MAX_PAGE], ids="page-{}".format)
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many rows are read at once: chains of several pages are chains like others."""
    size: int = request.param
    for module in (audit_chains, reading, trail, verification):
        monkeypatch.setattr(module, "MAX_PAGE", size)
    return size


@pytest.fixture
async def session(file_store: MetadataStore) -> Session:
    repository = await file_store.repositories.create(name="app", remote_url="")
    return await another(file_store, repository)


async def another(store: MetadataStore, repository: Repository) -> Session:
    return await store.sessions.create(session_type="debug", repository_id=repository.id)


@contextlib.contextmanager
def unguarded(shell: sqlite3.Connection) -> Iterator[None]:
    """Without triggers, which are back afterwards as they were."""
    triggers = shell.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
    ).fetchall()
    shell.execute("BEGIN")
    for name, _ in triggers:
        shell.execute(f"DROP TRIGGER {name}")
    yield
    for _, sql in triggers:
        shell.execute(sql)
    shell.execute("COMMIT")


def tamper(shell: sqlite3.Connection, *statements: str) -> None:
    with unguarded(shell):
        for statement in statements:
            assert shell.execute(statement).rowcount != 0, statement


def forge(shell: sqlite3.Connection, session_id: str, *, keep: int) -> None:
    """Rewrite a session's events as a whole: shorter, another message, every hash and end right."""
    rows = shell.execute(
        "SELECT position, id, event_type, level, context, created_at FROM events"
        " WHERE session_id = ? ORDER BY position",
        (session_id,),
    ).fetchall()
    last = ""
    with unguarded(shell):
        for position, id_, event_type, level, context, created_at in rows[:keep]:
            hash_ = link_hash(
                last, id_, session_id, event_type, level, "forged", context, created_at
            )
            shell.execute(
                "UPDATE events SET message = 'forged', hash = ? WHERE position = ?",
                (hash_, position),
            )
            last = f"{position}:{hash_}"
        for position, *_ in rows[keep:]:
            shell.execute("DELETE FROM events WHERE position = ?", (position,))
        shell.execute(
            "UPDATE audit_chains SET length = ?, last = ? WHERE resource_id = ?",
            (keep, last, session_id),
        )


async def test_verify__of_an_empty_store_finds_nothing(store: MetadataStore) -> None:
    report = await store.audit_chains.verify()
    assert (report.chains, report.rows, report.findings) == (0, 0, [])
    digest = await store.audit_chains.checkpoint()
    assert (await store.audit_chains.verify(checkpoint=digest)).findings == []
    with pytest.raises(NotFound):
        await store.audit_chains.get("events", new_id())


async def test_verify__names_the_row(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection
) -> None:
    ids = await file_store.events.append_many(session.id, [NewEvent("a", str(n)) for n in range(9)])
    assert (await file_store.audit_chains.verify()).findings == []

    async def finding(statement: str) -> Finding:
        tamper(shell, statement)
        [found] = (await file_store.audit_chains.verify()).findings
        return found

    edited = await finding(f"UPDATE events SET message = 'x' WHERE id = '{ids[4]}'")
    assert edited == Finding("events", session.id, ids[4], "edited")
    tamper(shell, f"UPDATE events SET message = '4' WHERE id = '{ids[4]}'")
    removed = await finding(f"DELETE FROM events WHERE id = '{ids[8]}'")
    assert removed == Finding("events", session.id, ids[7], "removed")
    inner = await finding(f"DELETE FROM events WHERE id = '{ids[2]}'")
    assert inner == Finding("events", session.id, ids[3], "removed")
    everything = await finding("DELETE FROM events")
    assert everything == Finding("events", session.id, None, "removed")


async def test_verify__beside_writers_raises_no_alarm(
    file_store: MetadataStore, session: Session
) -> None:
    done = asyncio.Event()

    async def write() -> None:
        for n in range(150):
            await file_store.events.append(session.id, "a", str(n))
        done.set()

    async def watch() -> int:
        looked = 0
        while not done.is_set():
            assert (await file_store.audit_chains.verify()).findings == []
            looked += 1
        return looked

    *_, looked = await asyncio.gather(write(), write(), watch())
    assert looked > 0


async def test_verify__finds_no_fault_in_what_was_undone_or_refused(
    file_store: MetadataStore, session: Session
) -> None:
    store = file_store

    async def append(n: int) -> None:
        with contextlib.suppress(InvalidReference):
            await store.events.append(new_id() if n % 3 == 0 else session.id, "a", str(n))

    await asyncio.gather(*map(append, range(60)))
    with contextlib.suppress(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.events.append(session.id, "a", "undone")
            raise ZeroDivisionError
    async with store.transaction() as tx:
        await tx.events.append(session.id, "a", "b")
        same = new_id()
        with pytest.raises(AlreadyExists):
            await tx.events.append_many(session.id, [NewEvent("a", "c", id=same) for _ in range(2)])
        assert (await tx.audit_chains.verify()).findings == []
    assert (await store.audit_chains.verify()).findings == []
    assert (await store.audit_chains.get("events", session.id)).length == 41


async def test_purge__leaves_a_stub_and_the_rest_verifies(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection
) -> None:
    repository = await file_store.repositories.find_by_name("app")
    assert repository is not None
    other = await another(file_store, repository)
    for each in (session, other):
        await file_store.events.append_many(each.id, [NewEvent("a", str(n)) for n in range(3)])
    digest = await file_store.audit_chains.checkpoint()
    before = await file_store.audit_chains.get("events", session.id)
    shell.execute("DELETE FROM sessions WHERE id = ?", (session.id,))
    stub = await file_store.audit_chains.get("events", session.id)
    assert (stub.length, stub.purged, stub.base) == (3, 3, before.last)
    assert stub.purged_at is not None
    assert stub.last == f"{before.last};purged=3;at={timestamp(stub.purged_at)}"
    assert (await file_store.audit_chains.list("events")).items[0] == stub
    report = await file_store.audit_chains.verify(checkpoint=digest)
    assert (report.chains, report.rows, report.findings) == (2, 3, [])


@pytest.mark.parametrize("appended", [False, True])
async def test_verify__of_sessions_that_are_purged_meanwhile(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection, appended: bool
) -> None:
    """Between two pages of the first look, or of the second, which an append leads to."""
    repository = await file_store.repositories.find_by_name("app")
    assert repository is not None
    other = await another(file_store, repository)
    for each in (session, other):
        await file_store.events.append_many(each.id, [NewEvent("a", str(n)) for n in range(6)])
    chains = type(file_store.audit_chains)(file_store.audit_chains._scope)
    run, pages = chains._run, Counter[str]()

    async def purging(call: Any) -> Any:
        rows = await run(call)
        name = call.statement.name
        pages[name] += 1
        # After the rows were read, and after the end was: one of them is noticed.
        if name in ("list_audited_events", "list_chain_states") and pages[name] == 1 and appended:
            await file_store.events.append(session.id, "a", "more")
        purge_in = "list_audited_events_of" if appended else "list_audited_events"
        if name == purge_in and pages[name] == 1:
            shell.execute("DELETE FROM sessions WHERE id = ?", (session.id,))
        return rows

    chains._run = purging
    assert (await chains.verify()).findings == []
    assert (await chains.get("events", session.id)).purged == 6 + 2 * appended


@pytest.mark.parametrize("keep", [0, 4])
async def test_verify__names_the_first_row_beyond_the_end(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection, keep: int
) -> None:
    """Their hashes fit, but the chain ended before them."""
    ids = await file_store.events.append_many(session.id, [NewEvent("a", str(n)) for n in range(7)])
    rows = shell.execute("SELECT position || ':' || hash FROM events ORDER BY position").fetchall()
    last = rows[keep - 1][0] if keep else ""
    shell.execute("UPDATE audit_chains SET length = ?, last = ?", (keep, last))
    [finding] = (await file_store.audit_chains.verify()).findings
    assert finding == Finding("events", session.id, ids[keep], "inserted")


async def test_verify__beside_a_tampering_and_writers_names_the_row(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection, page: int
) -> None:
    """What is appended between two looks excuses no fault, and is none."""
    ids = await file_store.events.append_many(session.id, [NewEvent("a", str(n)) for n in range(7)])
    tamper(shell, f"UPDATE events SET message = 'x' WHERE id = '{ids[4]}'")
    chains = type(file_store.audit_chains)(file_store.audit_chains._scope)
    run = chains._run

    async def writing(call: Any) -> Any:
        rows = await run(call)
        await file_store.events.append(session.id, "a", "more")
        return rows

    chains._run = writing
    [found] = (await chains.verify()).findings
    assert (found.row_id, found.what) == (ids[4], "edited")
    tamper(shell, f"UPDATE events SET message = '4' WHERE id = '{ids[4]}'")
    assert (await chains.verify()).findings == []


async def test_verify__reads_pages_and_hashes_them_in_a_thread(
    file_store: MetadataStore,
    session: Session,
    page: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On its own lane, and with no more rows at once than a page holds."""
    count = 2 * page + 1
    for start in range(0, count, 1000):
        await file_store.events.append_many(
            session.id, [NewEvent("a", str(n)) for n in range(start, min(count, start + 1000))]
        )
    added: list[tuple[int, bool]] = []
    add = EventsJudge.add

    def noting(self: EventsJudge, rows: Any) -> None:
        added.append((len(rows), threading.current_thread() is threading.main_thread()))
        add(self, rows)

    monkeypatch.setattr(EventsJudge, "add", noting)
    backend: Any = file_store._backend
    writer = backend._writer.hops
    report = await file_store.audit_chains.verify()
    assert (report.rows, report.findings) == (count, [])
    assert added == [(size, size <= FEW_ROWS) for size in (page, page, 1)]
    # A page of events each, and one of tool executions; of either table's chains, what checkpoints
    # noted of them and their entries; checkpoints; entries, until there are no more.
    assert backend._scans.lane.hops == 3 + 1 + 2 * 3 + 1 + 2
    assert backend._writer.hops == writer


async def test_verify__of_calls_that_end_out_of_order(
    file_store: MetadataStore, shell: sqlite3.Connection
) -> None:
    """The end of a call may follow the start of many others, on later pages."""
    tasks = [(await file_store.tasks.create(title="t", task_type="tool")).id for _ in range(2)]
    begun = [
        await file_store.tool_executions.start(task_id=task, tool_name="t", arguments={"n": n})
        for n in range(7)
        for task in tasks
    ]
    for call in reversed(begun[:-2]):
        await file_store.tool_executions.complete(call.id, output={})
    report = await file_store.audit_chains.verify()
    assert (report.chains, report.rows, report.findings) == (2, 14, [])
    tamper(shell, f"UPDATE tool_executions SET output = '[1]' WHERE id = '{begun[3].id}'")
    [finding] = (await file_store.audit_chains.verify()).findings
    assert finding == Finding("tool_executions", tasks[1], begun[3].id, "edited")


async def test_checkpoint__shows_a_rewriting_that_is_consistent_in_itself(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection
) -> None:
    await file_store.events.append_many(session.id, [NewEvent("a", str(n)) for n in range(5)])
    first = await file_store.audit_chains.checkpoint()
    assert await file_store.audit_chains.checkpoint() == first
    await file_store.events.append_many(session.id, [NewEvent("a", str(n)) for n in range(5)])
    second = await file_store.audit_chains.checkpoint()
    assert second != first
    for digest in (first, second):
        assert (await file_store.audit_chains.verify(checkpoint=digest)).findings == []
    forge(shell, session.id, keep=10)
    for asked in (None, first, second):
        [finding] = (await file_store.audit_chains.verify(checkpoint=asked)).findings
        assert (finding.what, finding.resource_id) == ("rewritten", session.id)
    # What the checkpoints noted is covered by the digests.
    shell.execute("UPDATE audit_heads SET last = (SELECT last FROM audit_chains)")
    for digest in (first, second):
        findings = (await file_store.audit_chains.verify(checkpoint=digest)).findings
        assert {(it.resource, it.resource_id) for it in findings} >= {
            ("audit_checkpoints", "1"),
            ("audit_checkpoints", "2"),
        }
    findings = (await file_store.audit_chains.verify(checkpoint="0" * 64)).findings
    assert ("0" * 64, "unknown") in {(it.resource_id, it.what) for it in findings}
    for malformed in ("", "0" * 63, "0" * 64 + "\n", "G" * 64):
        with pytest.raises(InvalidValue):
            await file_store.audit_chains.verify(checkpoint=malformed)


@pytest.mark.parametrize("keep", [0, 3])
async def test_checkpoint__shows_an_end_that_was_cut_off(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection, keep: int
) -> None:
    await file_store.events.append_many(session.id, [NewEvent("a", str(n)) for n in range(5)])
    digest = await file_store.audit_chains.checkpoint()
    forge(shell, session.id, keep=keep)
    [finding] = (await file_store.audit_chains.verify(checkpoint=digest)).findings
    assert (finding.what, finding.resource_id) == ("rewritten", session.id)
    tamper(shell, "DELETE FROM events" if keep else "SELECT 1", "DELETE FROM audit_chains")
    [finding] = (await file_store.audit_chains.verify(checkpoint=digest)).findings
    assert finding.what == "removed"


@pytest.mark.parametrize("hash_", ["hash", "NULL"])
@pytest.mark.parametrize("position", ["position", "NULL"])
async def test_verify__finds_a_row_that_was_replaced(
    file_store: MetadataStore,
    session: Session,
    shell: sqlite3.Connection,
    position: str,
    hash_: str,
) -> None:
    for n in range(3):
        await file_store.events.append(session.id, "a", f"{n}")
    shell.execute(
        "INSERT OR REPLACE INTO events"
        " (position, id, session_id, event_type, level, message, context, created_at, hash)"
        f" SELECT {position}, id, session_id, event_type, level, 'forged', context, created_at,"
        f" {hash_} FROM events WHERE message = '1'"
    )
    assert shell.execute("SELECT count(*) FROM events WHERE message = 'forged'").fetchone() == (1,)
    [finding] = (await file_store.audit_chains.verify()).findings
    assert finding.resource_id == session.id


@pytest.mark.parametrize("command", ["INSERT OR REPLACE INTO", "REPLACE INTO"])
async def test_replace__is_refused_under_recursive_triggers(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection, command: str
) -> None:
    await file_store.events.append(session.id, "a", "b")
    shell.execute("PRAGMA recursive_triggers = ON")
    with pytest.raises(sqlite3.IntegrityError, match="events are history"):
        shell.execute(f"{command} events SELECT * FROM events")


async def test_command__tells_and_ends_with_a_code(
    file_store: MetadataStore, store_url: str, session: Session, shell: sqlite3.Connection
) -> None:
    event = await file_store.events.append(session.id, "a", "b")
    await file_store.close()

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["audit", *arguments, "--db", store_url])

    digest = await asyncio.to_thread(lambda: run("checkpoint").stdout.strip())
    assert len(digest) == 64
    fine = await asyncio.to_thread(run, "verify", "--checkpoint", digest)
    assert (fine.exit_code, fine.stdout) == (0, "")
    tamper(shell, "UPDATE events SET message = 'c'")
    found = await asyncio.to_thread(run, "verify")
    assert found.exit_code == 1
    assert event.id in found.stdout
    document = json.loads((await asyncio.to_thread(run, "verify", "--json")).stdout)
    assert document["findings"][0]["row_id"] == event.id
    tamper(shell, f"UPDATE events SET id = '\x1b[2J{event.id[4:]}'")
    found = await asyncio.to_thread(run, "verify")
    assert rf"at \x1b[2J{event.id[4:]}" in found.stdout
    unknown = await asyncio.to_thread(run, "verify", "--checkpoint", "0" * 64)
    assert unknown.exit_code == 1
    assert f"audit_checkpoints of {'0' * 64}: unknown" in unknown.stdout
    malformed = await asyncio.to_thread(run, "verify", "--checkpoint", "0")
    assert (malformed.exit_code, len(malformed.stderr.splitlines())) == (1, 1)


async def test_checkpoint__proves_what_came_before_it(
    file_store: MetadataStore, session: Session
) -> None:
    digests: list[str] = []
    for n in range(3):
        await file_store.events.append(session.id, "a", str(n))
        digests.append(await file_store.audit_chains.checkpoint(since=digests[-1] if n else None))
    verify = file_store.audit_chains.verify
    assert (await verify(checkpoint=digests[2], since=digests[0])).findings == []
    assert (await verify(since=digests[1])).findings == []
    [finding] = (await verify(checkpoint=digests[0], since=digests[2])).findings
    assert (finding.resource_id, finding.what) == (digests[2], "unknown")
    with pytest.raises(InvalidValue, match="no ancestor"):
        await file_store.audit_chains.checkpoint(since="0" * 64)


async def test_checkpoint__of_two_at_once_is_one_line_of_checkpoints(
    file_store: MetadataStore, session: Session
) -> None:
    """The one that comes second begins again, and leaves nothing behind."""
    await file_store.events.append(session.id, "a", "b")
    slow = type(file_store.audit_chains)(file_store.audit_chains._scope)
    run = slow._run

    async def overtaken(call: Any) -> Any:
        if call.statement.name == "create_audit_checkpoint" and not digests:
            await file_store.events.append(session.id, "a", "more")
            digests.append(await file_store.audit_chains.checkpoint())
        return await run(call)

    digests: list[str] = []
    slow._run = overtaken
    digests.append(await slow.checkpoint())
    assert digests[0] == digests[1]
    report = await file_store.audit_chains.verify(checkpoint=digests)
    assert (report.checkpoints, report.findings) == (1, [])


async def test_checkpoint__notes_only_the_chains_that_changed(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection
) -> None:
    repository = await file_store.repositories.find_by_name("app")
    assert repository is not None
    other = await another(file_store, repository)
    tasks = [(await file_store.tasks.create(title="t", task_type="tool")).id for _ in range(2)]
    for each in (session, other):
        await file_store.events.append(each.id, "a", "b")
    calls = [await file_store.tool_executions.start(task_id=it, tool_name="t") for it in tasks]
    await file_store.audit_chains.checkpoint()
    await file_store.events.append(other.id, "a", "b")
    await file_store.tool_executions.complete(calls[1].id)
    digest = await file_store.audit_chains.checkpoint()
    noted = shell.execute(
        "SELECT number, resource, resource_id, length FROM audit_heads WHERE number = 2"
    ).fetchall()
    assert noted == [(2, "events", other.id, 2), (2, "tool_executions", tasks[1], 2)]
    totals = shell.execute("SELECT chains, links FROM audit_checkpoints").fetchall()
    assert totals == [(4, 4), (4, 6)]
    assert shell.execute("SELECT count(*) FROM audit_changes").fetchone() == (0,)
    assert (await file_store.audit_chains.verify(checkpoint=digest)).findings == []


@pytest.mark.parametrize("run", ["0", "f"], ids=["before", "after"])
async def test_checkpoint__removes_what_a_dead_run_noted(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection, run: str
) -> None:
    """Whether that began before or after the run that ends, and however much it is."""
    await file_store.events.append(session.id, "a", "b")
    shell.executemany(
        "INSERT INTO audit_heads VALUES (?, 'events', ?, ?, 0, 1, '1:x', 0, '', NULL)",
        [(run, new_id(), 1) for _ in range(2 * audit_chains.PIECE)] + [(run, session.id, 2)],
    )
    await file_store.audit_chains.checkpoint()
    noted = shell.execute("SELECT number, resource_id FROM audit_heads ORDER BY run").fetchall()
    # A run that is to follow this checkpoint may still end.
    expected = [(1, session.id), (2, session.id)]
    assert noted == (expected if run == "f" else expected[::-1])
    assert (await file_store.audit_chains.verify()).findings == []


async def test_checkpoint__works_no_longer_at_a_time_the_more_it_notes(
    file_store: MetadataStore,
    session: Session,
    shell: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No statement that writes looks at all that was noted."""
    monkeypatch.setattr(audit_chains, "PIECE", 4)
    repository = await file_store.repositories.find_by_name("app")
    assert repository is not None
    chains = type(file_store.audit_chains)(file_store.audit_chains._scope)
    run, run_all = chains._run, chains._run_all
    steps: Counter[tuple[int, str]] = Counter()
    sizes = (8, 80)

    def count(call: Any) -> None:
        def step() -> int:
            steps[size, call.statement.name] += 1
            return 0

        shell.execute("BEGIN")
        shell.set_progress_handler(step, 1)
        most = steps.pop((size, call.statement.name), 0)
        for row in call.bound if isinstance(call.bound, list) else [call.bound]:
            shell.execute(call.statement.sql, row).fetchall()
        steps[size, call.statement.name] = max(most, steps[size, call.statement.name])
        shell.set_progress_handler(None, 0)
        shell.execute("ROLLBACK")

    async def counting(call: Any) -> Any:
        if call.statement.writes:
            count(call)
        return await run(call)

    async def counting_all(*calls: Any) -> Any:
        for call in calls:
            count(call)
        return await run_all(*calls)

    chains._run, chains._run_all = counting, counting_all
    for size in sizes:
        for _ in range(size):
            each = await another(file_store, repository)
            task = await file_store.tasks.create(title="t", task_type="tool")
            await file_store.events.append(each.id, "a", "b")
            await file_store.tool_executions.start(task_id=task.id, tool_name="t")
        await chains.checkpoint()
    few, many = ({n: c for (s, n), c in steps.items() if s == size} for size in sizes)
    assert few.keys() == many.keys() >= {"delete_audit_heads", "delete_audit_change"}
    assert {name for name in few if many[name] > 2 * few[name]} == set()


@pytest.mark.parametrize("purged", [1, 2])
async def test_checkpoint__after_the_newest_events_were_purged(
    file_store: MetadataStore, session: Session, purged: int
) -> None:
    """The last position that is left is before that of the last checkpoint."""
    repository = await file_store.repositories.find_by_name("app")
    assert repository is not None
    sessions = [session, *[await another(file_store, repository) for _ in range(2)]]
    for each in sessions:
        await file_store.events.append_many(each.id, [NewEvent("a", str(n)) for n in range(3)])
    digests = [await file_store.audit_chains.checkpoint()]
    for each in sessions[3 - purged :]:
        await file_store.sessions.delete(each.id)
    digests.append(await file_store.audit_chains.checkpoint())
    await file_store.events.append(session.id, "a", "after")
    digests.append(await file_store.audit_chains.checkpoint())
    report = await file_store.audit_chains.verify(checkpoint=digests)
    assert (report.checkpoints, report.rows, report.findings) == (3, 10 - 3 * purged, [])


async def test_purge__is_a_link_that_what_follows_covers(
    file_store: MetadataStore, session: Session, shell: sqlite3.Connection
) -> None:
    """Also a purge in pieces, and a session that comes back under its id."""
    repository = await file_store.repositories.find_by_name("app")
    assert repository is not None
    ids = await file_store.events.append_many(session.id, [NewEvent("a", str(n)) for n in range(5)])
    rows = shell.execute("SELECT position, hash FROM events ORDER BY position").fetchall()
    for cut in (2, 4):
        position, hash_ = rows[cut - 1]
        tamper(shell, f"DELETE FROM events WHERE position <= {position}")
        shell.execute(
            "UPDATE audit_chains SET purged = ?, base = ?, purged_at = ? WHERE resource_id = ?",
            (cut, f"{position}:{hash_}", f"2026-01-01T00:00:0{cut}.000Z", session.id),
        )
        # Nobody is deleting the session.
        [finding] = (await file_store.audit_chains.verify()).findings
        assert (finding.resource_id, finding.what) == (session.id, "removed")
    digest = await file_store.audit_chains.checkpoint()
    await file_store.sessions.delete(session.id)
    await file_store.sessions.create(
        id=session.id, session_type="debug", repository_id=repository.id
    )
    await file_store.events.append(session.id, "a", "after")
    report = await file_store.audit_chains.verify(checkpoint=digest)
    assert (report.rows, report.findings) == (1, [])
    assert [(it.resource_id, it.purged) for it in report.purges] == [(session.id, len(ids))]
    tamper(shell, "UPDATE audit_entries SET purged = 4 WHERE kind = 'purge' AND purged = 5")
    [finding] = (await file_store.audit_chains.verify()).findings
    assert finding.resource_id == session.id


async def test_verify__ends_a_page_at_so_many_bytes(
    file_store: MetadataStore, session: Session, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    task = (await file_store.tasks.create(title="t", task_type="tool")).id
    for _ in range(5):
        await file_store.events.append(session.id, "a", "x" * 2_000)
        await file_store.tool_executions.start(
            task_id=task, tool_name="t", arguments={"a": "x" * 2_000}
        )
    for module in (reading, verification):
        monkeypatch.setattr(module, "PAGE_BYTES", 3_000)
    longest: list[int] = []
    chains = type(file_store.audit_chains)(file_store.audit_chains._scope)
    run = chains._run

    async def weighing(call: Any) -> Any:
        rows = await run(call)
        if call.statement.name.startswith("list_audited"):
            longest.append(len(rows))
        return rows

    chains._run = weighing
    report = await chains.verify()
    assert (report.rows, report.findings) == (10, [])
    assert max(longest) == 2


@pytest.mark.parametrize("wrong", ["stranger", "unsigned"])
async def test_signatures__are_by_a_key_that_is_replaced(
    file_store: MetadataStore,
    session: Session,
    shell: sqlite3.Connection,
    tmp_path: Path,
    wrong: str,
) -> None:
    path = tmp_path / "sign.key"
    public = generate(path)
    keys, digests = [path.read_text()], []
    for n in range(3):
        await file_store.events.append(session.id, "a", str(n))
        digests.append(await file_store.audit_chains.checkpoint(signer=Signer(path)))
        keys.append(path.read_text())
    assert len(set(keys)) == 4
    assert path.stat().st_mode & 0o777 == 0o600
    assert repr(Signer(path)).find(keys[-1].strip()) == -1
    verify = file_store.audit_chains.verify
    report = await verify(verify_key=public)
    assert (report.signed, report.findings) == (3, [])
    if wrong == "stranger":
        # Whoever takes the key of now signs none of what came before.
        stolen = Signer(path).sign(digests[0])
        shell.execute(
            "UPDATE audit_checkpoints SET signature = ?, next_key = ? WHERE number = 1",
            (stolen.signature, stolen.next_key),
        )
    else:
        shell.execute("UPDATE audit_checkpoints SET signature = NULL WHERE number = 3")
    findings = (await verify(verify_key=public)).findings
    assert {it.what for it in findings} == {"unsigned"}
    path.chmod(0o640)
    with pytest.raises(InvalidValue, match="chmod 600"):
        Signer(path).sign(digests[0])


class DiedError(Exception):
    pass


class DyingSigner(Signer):
    """Its process dies when the checkpoint is there and the key is not replaced yet."""

    signed = False

    def sign(self, digest: str) -> Signature:
        self.signed = True
        return super().sign(digest)

    def advance(self, signed: Signature) -> None:
        if self.signed:
            raise DiedError
        super().advance(signed)


@pytest.mark.parametrize("unsigned", [0, 1])
async def test_signatures__after_a_crash_that_left_the_old_key(
    file_store: MetadataStore, session: Session, tmp_path: Path, unsigned: int
) -> None:
    """The process died when the checkpoint was there and the key was not replaced yet."""
    path = tmp_path / "sign.key"
    public = generate(path)
    for n in range(3):
        await file_store.events.append(session.id, "a", str(n))
        before = path.read_text()
        with pytest.raises(DiedError):
            await file_store.audit_chains.checkpoint(signer=DyingSigner(path))
        for m in range(unsigned):
            await file_store.events.append(session.id, "b", str(m))
            await file_store.audit_chains.checkpoint()
    await file_store.events.append(session.id, "a", "last")
    await file_store.audit_chains.checkpoint(signer=Signer(path))
    report = await file_store.audit_chains.verify(verify_key=public)
    assert (report.signed, report.findings) == (4, [])
    assert path.read_text() != before


async def test_command__anchors_signs_and_proves(
    file_store: MetadataStore, store_url: str, session: Session, tmp_path: Path
) -> None:
    await file_store.events.append(session.id, "a", "b")
    await file_store.close()
    anchors, handed = tmp_path / "anchors", tmp_path / "handed"
    sign, public = tmp_path / "sign.key", tmp_path / "public.key"

    def run(*arguments: str) -> Any:
        command = ["audit", *arguments]
        if arguments[0] != "keygen":
            command += ["--db", store_url]
        return CliRunner().invoke(main, command)

    def story() -> None:
        made = run("keygen", "--sign-key", str(sign), "--verify-key", str(public))
        assert made.exit_code == 0
        assert sign.stat().st_mode & 0o777 == 0o600
        assert run("keygen", "--sign-key", str(sign)).exit_code == 1
        options = ["--anchor-file", str(anchors), "--sign-key", str(sign)]
        digest = run("checkpoint", *options, "--anchor-command", f"cat > {handed}").stdout.strip()
        assert (anchors.read_text(), handed.read_text()) == (f"{digest}\n", f"{digest}\n")
        assert anchors.stat().st_mode & 0o777 == 0o600
        failed = run("checkpoint", "--anchor-command", "exit 3")
        assert (failed.exit_code, failed.stdout.strip()) == (1, digest)
        assert "code 3" in failed.stderr
        fine = run("verify", "--checkpoints", str(anchors), "--verify-key", str(public))
        assert fine.exit_code == 0, fine.output
        anchors.write_text(f"{digest}\n{'0' * 64}\n")
        found = run("verify", "--checkpoints", str(anchors))
        assert (found.exit_code, "0" * 64 in found.stdout) == (1, True)
        anchors.write_text(f"{digest}\n\n")
        refused = run("verify", "--checkpoints", str(anchors))
        assert (refused.exit_code, "line 2" in refused.stderr) == (1, True)

    await asyncio.to_thread(story)


@pytest.mark.parametrize(("position", "what"), [(3, None), (4, "inserted")])
def test_judge__believes_rows_without_a_hash_up_to_where_the_chains_began(
    position: int, what: str | None
) -> None:
    """Their number alone would let one be replaced by another that is newer."""
    state = State(unchained=2, present=True)
    chain = Chain(state, [], [Entry(2, "chain", 2, 0, 0, "now")])
    judge = EventsJudge("session", chain, unchained_until=3)
    judge.add(
        [
            (b"session", place, b"id", b"a", b"info", b"m", b"{}", b"now", None)
            for place in (1, position)
        ]
    )
    finding = judge.verdict(chain)
    assert (finding and finding.what) == what


@pytest.mark.parametrize(
    ("order", "what"),
    [
        ("--##", None),
        ("-#-#", "inserted"),
        ("-##-", "inserted"),
        ("#--#", "inserted"),
        ("##--", "inserted"),
    ],
)
def test_judge__takes_no_row_without_a_hash_behind_one_that_has_a_hash(
    order: str, what: str | None
) -> None:
    """Neither their number nor where the chains began tells: both are as they should be."""
    rows, last, length = [], "", 0
    for position, mark in enumerate(order, 1):
        covered = (f"id {position}", "session", "a", "info", "m", "{}", "now")
        hash_ = None
        if mark == "#":
            hash_ = link_hash(last, *covered)
            last, length = f"{position}:{hash_}", length + 1
        row_id, session, *rest = (text.encode() for text in covered)
        rows.append((session, position, row_id, *rest, hash_ and hash_.encode()))
    state = State(unchained=2, length=length, last=last, present=True)
    chain = Chain(state, [], [Entry(2, "chain", 2, 0, 0, "now")])
    judge = EventsJudge("session", chain, unchained_until=len(order))
    judge.add(rows)
    finding = judge.verdict(chain)
    assert (finding and finding.what) == what
    assert finding is None or finding.row_id == f"id {order.index('-', order.index('#')) + 1}"


def test_encode__no_two_read_the_same() -> None:
    lists: list[tuple[Any, ...]] = [
        ("a", "b"),
        ("ab",),
        ("ab", ""),
        ("", "ab"),
        ("a\0b",),
        ("a\nb",),
        ("1",),
        (1,),
        (None,),
        ("",),
        (),
    ]
    assert len({encode(*parts) for parts in lists}) == len(lists)


def test_link_hash__no_two_links_read_the_same() -> None:
    links: list[tuple[Any, ...]] = [
        ("a", "b"),
        ("ab", ""),
        ("", "ab"),
        ("a", None),
        ("a", "-"),
        ("=a", "-"),
        (None, "a"),
        ("a", "1"),
    ]
    assert len({link_hash(*link) for link in links}) == len(links)
