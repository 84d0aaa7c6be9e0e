"""Named attacks on history by somebody who has the file and the source; and honest histories."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from metastore import AlreadyExists, InvalidReference, MetadataStore, NewEvent, deletion
from metastore.audit.links import Finding, encode, link_hash
from metastore.audit.reading import AuditCheckpoint
from metastore.codec import new_id
from metastore.repositories import audit_chains
from metastore.sealing import Signer, generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ("events", "tool_executions")
TIME = "2026-01-01T00:00:00.000Z"
WORKER = Path(__file__).with_name("history_worker.py")


class Story(NamedTuple):
    """A history, and what its owner keeps elsewhere.

    Attributes:
        digests: of two checkpoints, with history before, between and behind them.
        victims: the session or task that is attacked, by table; `others` stay as they are.
        stubs: what was purged between the checkpoints.
    """

    database: Path
    older: Path
    digests: list[str]
    victims: dict[str, str]
    others: dict[str, str]
    stubs: dict[str, str]


def back_up(database: Path, to: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", (str(to),))


async def _tell(store: MetadataStore, sessions: list[str], tasks: list[str], calls: int) -> None:
    for n in range(calls):
        for session in sessions:
            await store.events.append(session, "step", f"message {n}", context={"n": n})
        for task in tasks:
            begun = await store.tool_executions.start(
                task_id=task, tool_name="bash", arguments={"n": n}
            )
            if n % 3:
                await store.tool_executions.complete(begun.id, output={"n": n})


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    database, older = folder / "m.db", folder / "older.db"

    async def tell() -> Story:
        async with MetadataStore.open(f"sqlite:///{database}", migrate=True) as store:
            repository = await store.repositories.create(name="app", remote_url="")
            sessions, tasks = [], []
            for _ in range(3):
                session = await store.sessions.create(
                    session_type="debug", repository_id=repository.id
                )
                sessions.append(session.id)
                tasks.append((await store.tasks.create(title="t", task_type="tool")).id)
            await _tell(store, sessions, tasks, 4)
            first = await store.audit_chains.checkpoint()
            back_up(database, older)
            await _tell(store, sessions, tasks, 3)
            await store.sessions.delete(sessions[2])
            await store.tasks.delete(tasks[2])
            second = await store.audit_chains.checkpoint()
            await _tell(store, sessions[:2], tasks[:2], 2)
        ids = [dict(zip(KINDS, pair, strict=True)) for pair in zip(sessions, tasks, strict=True)]
        return Story(database, older, [first, second], *ids)

    return asyncio.run(tell())


class Attacker:
    """Somebody with the file. Triggers are off during an attack, and back afterwards."""

    def __init__(self, story: Story, kind: str) -> None:
        self.story, self.kind = story, kind
        self.db = sqlite3.connect(story.database, isolation_level=None)
        self.victim, self.other = story.victims[kind], story.others[kind]
        self.stub = story.stubs[kind]
        is_events = kind == "events"
        self.owner = "session_id" if is_events else "task_id"
        self.parent = "sessions" if is_events else "tasks"
        self.text = "message" if is_events else "arguments"
        self.forged = "'forged'" if is_events else "'{\"n\":-1}'"
        self.key = "position" if is_events else "sequence"
        # Digests of checkpoints that were taken during the attack.
        self.taken: list[str] = []

    def do(self, statement: str, *values: Any) -> None:
        done = self.db.execute(statement, values)
        assert done.rowcount != 0, statement

    @contextlib.contextmanager
    def unguarded(self) -> Iterator[None]:
        triggers = self.db.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
        ).fetchall()
        self.db.execute("PRAGMA ignore_check_constraints = ON")
        self.db.execute("BEGIN")
        for name, _ in triggers:
            self.db.execute(f"DROP TRIGGER {name}")
        yield
        for _, sql in triggers:
            self.db.execute(sql)
        self.db.execute("COMMIT")

    def rows(self, of: str | None = None) -> list[int]:
        """Return the places of a chain's rows."""
        found = self.db.execute(
            f"SELECT {self.key} FROM {self.kind} WHERE {self.owner} = ? ORDER BY {self.key}",
            (of or self.victim,),
        )
        return [place for (place,) in found]

    def set_chain(self, values: str, of: str | None = None) -> None:
        self.do(
            f"UPDATE audit_chains SET {values} WHERE resource = ? AND resource_id = ?",
            self.kind,
            of or self.victim,
        )

    def edit(self, place: int | None = None) -> None:
        self.do(
            f"UPDATE {self.kind} SET {self.text} = {self.forged}"
            f" WHERE {self.owner} = ? AND {self.key} = ?",
            self.victim,
            self.rows()[1] if place is None else place,
        )

    def delete(self, places: list[int]) -> None:
        for place in places:
            self.do(
                f"DELETE FROM {self.kind} WHERE {self.owner} = ? AND {self.key} = ?",
                self.victim,
                place,
            )

    def rehash(self, base: str = "", purged: int = 0) -> dict[int, str]:
        """Compute every hash of the chain anew, and its end; return its ends by length."""
        follows, ends = base, {purged: base}
        if self.kind == "events":
            rows = self.db.execute(
                "SELECT position, id, session_id, event_type, level, message, context, created_at"
                " FROM events WHERE session_id = ? ORDER BY position",
                (self.victim,),
            ).fetchall()
            for position, *covered in rows:
                hash_ = link_hash(follows.partition(";")[0], *covered)
                self.do("UPDATE events SET hash = ? WHERE position = ?", hash_, position)
                follows = f"{position}:{hash_}"
                ends[len(ends) + purged] = follows
        else:
            links = self.db.execute(
                "SELECT sequence AS place, 0, id, task_id, tool_name, arguments, created_at, NULL"
                " FROM tool_executions WHERE task_id = ?1 UNION ALL"
                " SELECT finished_sequence, 1, id, status, output, error, completed_at, duration_ms"
                " FROM tool_executions WHERE task_id = ?1 AND finished_sequence IS NOT NULL"
                " ORDER BY place",
                (self.victim,),
            ).fetchall()
            for number, (_, is_end, row_id, *covered) in enumerate(links, purged + 1):
                parts = covered if is_end else covered[:-1]
                hash_ = link_hash(follows, row_id, *parts)
                column = "finished_" if is_end else ""
                self.do(
                    f"UPDATE tool_executions SET {column}sequence = ?, {column}hash = ?"
                    " WHERE id = ?",
                    number,
                    hash_,
                    row_id,
                )
                follows = f"{number}:{hash_}"
                ends[number] = follows
        self.set_chain(f"length = {max(ends)}, last = '{follows}'")
        return ends

    def renote(self, ends: dict[int, str]) -> None:
        """Let the checkpoints have noted these ends."""
        heads = self.db.execute(
            "SELECT run, length FROM audit_heads WHERE resource = ? AND resource_id = ?",
            (self.kind, self.victim),
        ).fetchall()
        for run, length in heads:
            self.do(
                "UPDATE audit_heads SET length = ?, last = ?"
                " WHERE run = ? AND resource = ? AND resource_id = ?",
                min(length, max(ends)),
                ends[min(length, max(ends))],
                run,
                self.kind,
                self.victim,
            )

    def recheckpoint(self) -> None:
        """Compute the digest of every checkpoint anew."""
        rows = self.db.execute("SELECT * FROM audit_checkpoints ORDER BY number").fetchall()
        names = [it[1] for it in self.db.execute("PRAGMA table_info(audit_checkpoints)")]
        before: dict[str, Any] = dict.fromkeys(names, 0) | {"digest": ""}
        lengths: dict[tuple[str, str], int] = {}
        for row in rows:
            new = dict(zip(names, row, strict=True))
            heads = self.db.execute(
                "SELECT resource, resource_id, unchained, length, last, purged, base, purged_at"
                " FROM audit_heads WHERE run = ? ORDER BY resource, resource_id",
                (new["run"],),
            ).fetchall()
            last_entry = self.db.execute("SELECT max(number) FROM audit_entries").fetchone()[0]
            new["entry"] = min(new["entry"], last_entry)
            entries = self.db.execute(
                "SELECT number, kind, resource, resource_id, unchained, length, purged, created_at"
                " FROM audit_entries WHERE number > ? AND number <= ? ORDER BY number",
                (before["entry"], new["entry"]),
            ).fetchall()
            lengths |= {(head[0], head[1]): head[3] for head in heads}
            new |= {
                "previous": before["digest"],
                "heads": len(heads),
                "heads_hash": sha256(b"".join(encode(*head) for head in heads)).hexdigest(),
                "entries_hash": sha256(b"".join(encode(*it) for it in entries)).hexdigest(),
                "chains": len(lengths),
                "links": sum(lengths.values()),
            }
            new["digest"] = AuditCheckpoint(
                **{name: new[name] for name in AuditCheckpoint._fields}
            ).computed()
            before = new
            listed = ", ".join(f"{name} = :{name}" for name in names if name != "number")
            self.db.execute(f"UPDATE audit_checkpoints SET {listed} WHERE number = :number", new)

    def enter(self, kind: str, *, purged: int, length: int) -> None:
        """Add an entry about the victim's chain, as the triggers would."""
        self.do(
            "INSERT INTO audit_entries (kind, resource, resource_id, length, purged, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            kind,
            self.kind,
            self.victim,
            length,
            purged,
            TIME,
        )

    def length(self, of: str | None = None) -> int:
        found = self.db.execute(
            "SELECT length FROM audit_chains WHERE resource = ? AND resource_id = ?",
            (self.kind, of or self.victim),
        )
        length: int = found.fetchone()[0]
        return length


class Attack(NamedTuple):
    """An attack, and where it shows.

    Attributes:
        shows: the resource and id of a finding; None for any.
        needs_anchor: whether only a digest kept elsewhere shows it.
    """

    run: Callable[[Attacker], None]
    shows: tuple[str, str | None]
    needs_anchor: bool


ATTACKS: dict[str, Attack] = {}


def attack(
    shows: str = "victim", *, needs_anchor: bool = False, guarded: bool = False
) -> Callable[[Callable[[Attacker], None]], None]:
    def note(run: Callable[[Attacker], None]) -> None:
        def unguarded(by: Attacker) -> None:
            with contextlib.nullcontext() if guarded else by.unguarded():
                run(by)

        ATTACKS[run.__name__] = Attack(unguarded, (shows, None), needs_anchor)

    return note


# Rows.


@attack()
def edit_a_row(by: Attacker) -> None:
    by.edit()


@attack()
def edit_the_last_row(by: Attacker) -> None:
    by.edit(by.rows()[-1])


@attack()
def edit_the_time_of_a_row(by: Attacker) -> None:
    by.do(f"UPDATE {by.kind} SET created_at = ? WHERE {by.owner} = ?", TIME, by.victim)


@attack()
def edit_the_id_of_a_row(by: Attacker) -> None:
    by.do(
        f"UPDATE {by.kind} SET id = ? WHERE {by.key} = ? AND {by.owner} = ?",
        new_id(),
        by.rows()[2],
        by.victim,
    )


@attack()
def exchange_two_rows(by: Attacker) -> None:
    first, second, *_ = by.rows()
    text = f"SELECT {by.text} FROM {by.kind} WHERE {by.owner} = ? AND {by.key} = ?"
    found = [by.db.execute(text, (by.victim, place)).fetchone()[0] for place in (second, first)]
    for place, value in zip((first, second), found, strict=True):
        by.do(
            f"UPDATE {by.kind} SET {by.text} = ? WHERE {by.owner} = ? AND {by.key} = ?",
            value,
            by.victim,
            place,
        )


@attack()
def move_text_across_a_nul(by: Attacker) -> None:
    """What two columns hold, joined, is the same as before."""
    columns = ("event_type", "message") if by.kind == "events" else ("tool_name", "arguments")
    first, second = columns
    by.do(
        f"UPDATE {by.kind} SET {first} = {first} || char(0) || {second}, {second} = ''"
        f" WHERE {by.owner} = ? AND {by.key} = ?",
        by.victim,
        by.rows()[0],
    )


@attack()
def delete_a_row(by: Attacker) -> None:
    by.delete(by.rows()[2:3])


@attack()
def delete_the_last_row(by: Attacker) -> None:
    by.delete(by.rows()[-1:])


@attack()
def delete_every_row(by: Attacker) -> None:
    by.delete(by.rows())


@attack()
def copy_a_row(by: Attacker) -> None:
    columns = [it[1] for it in by.db.execute(f"PRAGMA table_info({by.kind})")]
    listed = ", ".join(it for it in columns if it not in ("id", "position"))
    by.do(
        f"INSERT INTO {by.kind} (id, {listed}) SELECT ?, {listed} FROM {by.kind}"
        f" WHERE {by.owner} = ? AND {by.key} = ?",
        new_id(),
        by.victim,
        by.rows()[-1],
    )


@attack()
def replace_a_row(by: Attacker) -> None:
    columns = [it[1] for it in by.db.execute(f"PRAGMA table_info({by.kind})")]
    listed = ", ".join(columns)
    values = ", ".join(by.forged if it == by.text else it for it in columns)
    by.do(
        f"REPLACE INTO {by.kind} ({listed}) SELECT {values} FROM {by.kind}"
        f" WHERE {by.owner} = ? AND {by.key} = ?",
        by.victim,
        by.rows()[1],
    )


@attack()
def move_a_row_to_another_chain(by: Attacker) -> None:
    by.do(
        f"UPDATE {by.kind} SET {by.owner} = ? WHERE {by.owner} = ? AND {by.key} = ?",
        by.other,
        by.victim,
        by.rows()[-1],
    )


# Chains.


@attack()
def rewrite_a_chain(by: Attacker) -> None:
    by.edit()
    by.rehash()


@attack("audit_checkpoints")
def rewrite_a_chain_and_the_notes(by: Attacker) -> None:
    by.edit()
    by.renote(by.rehash())


@attack("audit_checkpoints", needs_anchor=True)
def rewrite_a_chain_and_every_checkpoint(by: Attacker) -> None:
    by.edit()
    by.renote(by.rehash())
    by.recheckpoint()


@attack()
def cut_a_chain_short(by: Attacker) -> None:
    by.delete(by.rows()[-4:])
    by.rehash()


@attack("audit_checkpoints", needs_anchor=True)
def cut_a_chain_short_under_every_checkpoint(by: Attacker) -> None:
    by.delete(by.rows()[-4:])
    by.renote(by.rehash())
    by.recheckpoint()


@attack()
def delete_a_chain(by: Attacker) -> None:
    by.delete(by.rows())
    by.do("DELETE FROM audit_chains WHERE resource_id = ?", by.victim)


@attack()
def exchange_two_chains(by: Attacker) -> None:
    swap = "UPDATE audit_chains SET resource_id = ? WHERE resource = ? AND resource_id = ?"
    for new, old in (("x", by.victim), (by.victim, by.other), (by.other, "x")):
        by.do(swap, new, by.kind, old)


@attack()
def unhash_everything(by: Attacker) -> None:
    """Without computing a hash: all of it may be edited afterwards."""
    by.do(f"UPDATE {by.kind} SET hash = NULL WHERE {by.owner} = ?", by.victim)
    by.set_chain("unchained = length, purged = length, base = last")
    by.edit()


@attack()
def unhash_everything_under_the_triggers(by: Attacker) -> None:
    by.do(f"UPDATE {by.kind} SET hash = NULL WHERE {by.owner} = ?", by.victim)
    by.do(f"UPDATE audit_chains SET unchained = {len(by.rows())} WHERE resource_id = ?", by.victim)
    by.enter("purge", purged=by.length(), length=by.length())
    by.set_chain(
        f"purged = length, base = last, purged_at = '{TIME}',"
        f" last = last || ';purged=' || length || ';at={TIME}'"
    )


@attack("audit_checkpoints")
def unhash_everything_and_the_entries(by: Attacker) -> None:
    """As if the rows were older than the chains."""
    count = len(by.rows())
    by.do(f"UPDATE {by.kind} SET hash = NULL WHERE {by.owner} = ?", by.victim)
    by.do("UPDATE audit_entries SET length = 1000000 WHERE kind = 'start'")
    by.do("UPDATE audit_entries SET unchained = ? WHERE resource_id = ?", count, by.victim)
    by.set_chain(f"unchained = {count}, length = 0, last = ''")


@attack("audit_checkpoints", needs_anchor=True)
def unhash_everything_and_recompute_the_rest(by: Attacker) -> None:
    if by.kind == "tool_executions":
        # Without a hash a call is found at once: leave none.
        by.delete(by.rows())
        by.renote({0: ""})
        by.set_chain("length = 0, last = ''")
    else:
        unhash = "UPDATE events SET hash = NULL WHERE session_id = ?"
        count = len(by.rows())
        by.do(unhash, by.victim)
        by.do("UPDATE audit_entries SET length = 1000000 WHERE kind = 'start'")
        by.do("UPDATE audit_entries SET unchained = ? WHERE resource_id = ?", count, by.victim)
        by.set_chain(f"unchained = {count}, length = 0, last = ''")
        by.do("UPDATE audit_heads SET unchained = ? WHERE resource_id = ?", count, by.victim)
        by.renote({0: ""})
    by.recheckpoint()


@attack()
def plant_rows_without_a_hash(by: Attacker) -> None:
    columns = "position, id, session_id, event_type, level, message, created_at"
    values = "-1, ?1, ?2, 'a', 'info', 'planted', ?3"
    if by.kind == "tool_executions":
        columns, values = "id, task_id, tool_name, created_at", "?1, ?2, 'planted', ?3"
    by.do(f"INSERT INTO {by.kind} ({columns}) VALUES ({values})", new_id(), by.victim, TIME)
    by.set_chain("unchained = unchained + 1")


@attack("audit_checkpoints")
def plant_rows_without_a_hash_and_their_entry(by: Attacker) -> None:
    columns = "position, id, session_id, event_type, level, message, created_at"
    values = "-1, ?1, ?2, 'a', 'info', 'planted', ?3"
    if by.kind == "tool_executions":
        columns, values = "id, task_id, tool_name, created_at", "?1, ?2, 'planted', ?3"
    by.do(f"INSERT INTO {by.kind} ({columns}) VALUES ({values})", new_id(), by.victim, TIME)
    by.set_chain("unchained = unchained + 1")
    by.do("UPDATE audit_entries SET unchained = 1 WHERE resource_id = ?", by.victim)


# Purges.


@attack()
def claim_a_purge(by: Attacker) -> None:
    by.delete(by.rows())
    by.set_chain(f"purged = length, base = last, purged_at = '{TIME}'")


@attack(guarded=True)
def claim_a_purge_by_the_triggers(by: Attacker) -> None:
    """They enter it: but the session is still there."""
    by.set_chain(f"purged = length, base = last, purged_at = '{TIME}'")
    with by.unguarded():
        by.delete(by.rows())


def _end_of_row(by: Attacker, place: int) -> tuple[int, str]:
    """Return how many links end with a row, and the last of them."""
    if by.kind == "events":
        number = by.rows().index(place) + 1
        [hash_] = by.db.execute("SELECT hash FROM events WHERE position = ?", (place,)).fetchone()
        return number, f"{place}:{hash_}"
    query = "SELECT coalesce(finished_sequence, sequence), coalesce(finished_hash, hash)"
    query += " FROM tool_executions WHERE task_id = ? AND sequence = ?"
    number, hash_ = by.db.execute(query, (by.victim, place)).fetchone()
    return number, f"{number}:{hash_}"


@attack()
def drop_the_first_rows(by: Attacker) -> None:
    rows = by.rows()[:2]
    purged, base = _end_of_row(by, rows[-1])
    by.delete(rows)
    by.set_chain(f"purged = {purged}, base = '{base}'")


@attack()
def drop_the_first_rows_as_a_purge(by: Attacker) -> None:
    rows = by.rows()[:2]
    purged, base = _end_of_row(by, rows[-1])
    by.delete(rows)
    by.enter("purge", purged=purged, length=by.length())
    by.set_chain(
        f"purged = {purged}, base = '{base}', purged_at = '{TIME}',"
        f" last = last || ';purged={purged};at={TIME}'"
    )


@attack()
def purge_past_the_mark_and_chain_anew(by: Attacker) -> None:
    by.delete(by.rows()[:-2])
    by.edit(by.rows()[0])
    purged = 1000 if by.kind == "events" else by.rows()[0] - 1
    by.rehash("1:" + "0" * 64, purged)
    by.set_chain(f"purged = {purged}, base = '1:{'0' * 64}', purged_at = '{TIME}'")


@attack("stub")
def edit_when_it_was_purged(by: Attacker) -> None:
    by.set_chain(f"purged_at = '{TIME}'", by.stub)


@attack("stub")
def edit_how_much_was_purged(by: Attacker) -> None:
    by.set_chain("purged = purged - 1, length = length - 1", by.stub)


@attack("audit_checkpoints")
def edit_when_it_was_purged_everywhere(by: Attacker) -> None:
    by.set_chain(
        f"purged_at = '{TIME}', last = base || ';purged=' || purged || ';at={TIME}'", by.stub
    )
    by.do(
        "UPDATE audit_entries SET created_at = ? WHERE kind = 'purge' AND resource_id = ?",
        TIME,
        by.stub,
    )
    by.do(
        "UPDATE audit_heads SET purged_at = ?1 WHERE resource_id = ?2 AND purged > 0", TIME, by.stub
    )


@attack("audit_checkpoints", needs_anchor=True)
def edit_when_it_was_purged_and_recompute(by: Attacker) -> None:
    ended = f"base || ';purged=' || purged || ';at={TIME}'"
    by.set_chain(f"purged_at = '{TIME}', last = {ended}", by.stub)
    by.do(
        "UPDATE audit_entries SET created_at = ? WHERE kind = 'purge' AND resource_id = ?",
        TIME,
        by.stub,
    )
    by.do(
        f"UPDATE audit_heads SET purged_at = ?, last = {ended}"
        " WHERE resource_id = ? AND purged > 0",
        TIME,
        by.stub,
    )
    by.recheckpoint()


@attack("stub")
def rewrite_a_stub(by: Attacker) -> None:
    by.set_chain(
        f"base = '1:{'0' * 64}', last = '1:{'0' * 64};purged=' || purged || ';at=' || purged_at",
        by.stub,
    )


@attack("stub")
def forget_the_purge_at_the_end_of_a_stub(by: Attacker) -> None:
    """The link after it would no longer follow the purge."""
    by.set_chain("last = substr(last, 1, instr(last, ';') - 1)", by.stub)


@attack()
def name_a_purge_that_never_was(by: Attacker) -> None:
    by.set_chain(f"last = last || ';purged=' || length || ';at={TIME}'")


@attack("stub")
def delete_a_stub(by: Attacker) -> None:
    by.do("DELETE FROM audit_chains WHERE resource_id = ?", by.stub)


@attack()
def delete_what_a_chain_belongs_to(by: Attacker) -> None:
    by.do(f"DELETE FROM {by.parent} WHERE id = ?", by.victim)


# Whole sessions.


def _vanish(by: Attacker) -> None:
    by.delete(by.rows())
    by.do(f"DELETE FROM {by.parent} WHERE id = ?", by.victim)
    by.do("DELETE FROM audit_chains WHERE resource_id = ?", by.victim)


@attack()
def remove_a_session_with_its_stub(by: Attacker) -> None:
    _vanish(by)


@attack("audit_entries")
def remove_a_session_with_its_entries(by: Attacker) -> None:
    _vanish(by)
    by.do("DELETE FROM audit_entries WHERE resource_id = ?", by.victim)


@attack("audit_checkpoints", needs_anchor=True)
def remove_a_session_and_number_the_entries_anew(by: Attacker) -> None:
    _vanish(by)
    by.do("DELETE FROM audit_entries WHERE resource_id = ?", by.victim)
    by.do("DELETE FROM audit_heads WHERE resource_id = ?", by.victim)
    numbers = [it for (it,) in by.db.execute("SELECT number FROM audit_entries ORDER BY number")]
    for new, old in enumerate(numbers, 1):
        by.do("UPDATE audit_entries SET number = ? WHERE number = ?", new, old)
    by.do("UPDATE sqlite_sequence SET seq = ? WHERE name = 'audit_entries'", len(numbers))
    by.recheckpoint()


# Entries and checkpoints.


@attack()
def relabel_the_beginning_of_a_chain(by: Attacker) -> None:
    by.do("UPDATE audit_entries SET kind = 'return' WHERE resource_id = ?", by.victim)


@attack("audit_checkpoints")
def backdate_the_beginning_of_a_chain(by: Attacker) -> None:
    by.do(
        "UPDATE audit_entries SET created_at = ? WHERE kind = 'chain' AND resource_id = ?",
        TIME,
        by.victim,
    )


@attack("audit_entries")
def delete_the_last_entry(by: Attacker) -> None:
    by.do("DELETE FROM audit_entries WHERE number = (SELECT max(number) FROM audit_entries)")


@attack("audit_checkpoints")
def edit_a_note(by: Attacker) -> None:
    by.do("UPDATE audit_heads SET last = ? WHERE resource_id = ?", f"1:{'0' * 64}", by.victim)


@attack("audit_checkpoints")
def merge_two_notes(by: Attacker) -> None:
    """Joined by NULs and newlines, both read as one."""
    query = "SELECT length, last FROM audit_heads WHERE resource_id = ? ORDER BY number"
    length, last = by.db.execute(query, (by.other,)).fetchone()
    by.do(
        "UPDATE audit_heads SET last = last || char(10) || ? WHERE number = 1 AND resource_id = ?",
        f"{by.kind}\0{by.other}\0{length}\0{last}",
        by.victim,
    )
    by.do("DELETE FROM audit_heads WHERE number = 1 AND resource_id = ?", by.other)


@attack("audit_checkpoints")
def delete_a_note(by: Attacker) -> None:
    by.do("DELETE FROM audit_heads WHERE number = 2 AND resource_id = ?", by.victim)


@attack("audit_checkpoints", needs_anchor=True)
def delete_the_last_checkpoint(by: Attacker) -> None:
    by.do("DELETE FROM audit_checkpoints WHERE number = 2")


@attack("audit_checkpoints", needs_anchor=True)
def delete_every_checkpoint(by: Attacker) -> None:
    by.do("DELETE FROM audit_checkpoints")
    by.do("DELETE FROM audit_heads")
    by.edit()
    by.rehash()


@attack("audit_checkpoints", needs_anchor=True, guarded=True)
def put_an_older_file_back(by: Attacker) -> None:
    by.db.close()
    for suffix in ("-wal", "-shm"):
        by.story.database.with_name(by.story.database.name + suffix).unlink(missing_ok=True)
    shutil.copy(by.story.older, by.story.database)


# What a checkpoint is to note.


def _checkpoint(by: Attacker) -> None:
    async def checkpoint() -> None:
        async with MetadataStore.open(f"sqlite:///{by.story.database}") as store:
            by.taken.append(await store.audit_chains.checkpoint())

    asyncio.run(checkpoint())


def _pass_over(by: Attacker) -> None:
    """Keep what the victim did since the last checkpoint from the next one, and put it back."""
    if by.kind == "tool_executions":
        by.do("DELETE FROM audit_changes WHERE task_id = ?", by.victim)
        _checkpoint(by)
        return
    since = "session_id = ? AND position > (SELECT max(position) FROM audit_checkpoints)"
    columns = [it[1] for it in by.db.execute("PRAGMA table_info(events)")]
    rows = by.db.execute(f"SELECT * FROM events WHERE {since}", (by.victim,)).fetchall()
    with by.unguarded():
        by.do(f"DELETE FROM events WHERE {since}", by.victim)
    _checkpoint(by)
    with by.unguarded():
        for row in rows:
            by.do(f"INSERT INTO events VALUES ({', '.join('?' * len(columns))})", *row)


@attack(guarded=True)
def keep_a_chain_from_a_checkpoint(by: Attacker) -> None:
    _pass_over(by)


@attack(guarded=True)
def keep_a_chain_from_a_checkpoint_and_rewrite_its_end(by: Attacker) -> None:
    _pass_over(by)
    with by.unguarded():
        by.edit(by.rows()[-1])
        by.rehash()


@attack(guarded=True)
def keep_a_chain_from_a_checkpoint_and_cut_its_end_short(by: Attacker) -> None:
    _pass_over(by)
    with by.unguarded():
        by.delete(by.rows()[-1:])
        by.rehash()


# The schema.

PLANTED = "CREATE TRIGGER {} BEFORE INSERT ON {} BEGIN SELECT raise(IGNORE); END"


@attack("schema", guarded=True)
def plant_a_trigger(by: Attacker) -> None:
    by.db.execute(PLANTED.format("helpful", by.kind))


@attack("schema", guarded=True)
def plant_a_trigger_in_the_name_of_sqlite(by: Attacker) -> None:
    by.db.execute(PLANTED.format("helpful", by.kind))
    by.db.execute("PRAGMA writable_schema = ON")
    by.do(
        "UPDATE sqlite_schema SET name = 'sqlite_helpful',"
        " sql = replace(sql, 'helpful', 'sqlite_helpful') WHERE name = 'helpful'"
    )


@attack("schema", guarded=True)
def plant_a_trigger_for_the_time_of_a_checkpoint(by: Attacker) -> None:
    by.db.execute(PLANTED.format("helpful", by.kind))

    _checkpoint(by)
    by.db.execute("DROP TRIGGER helpful")


@attack("schema", guarded=True)
def drop_a_guard(by: Attacker) -> None:
    by.db.execute(f"DROP TRIGGER {by.kind}_no_update")


@attack("schema", guarded=True)
def weaken_a_table(by: Attacker) -> None:
    by.db.execute("PRAGMA writable_schema = ON")
    by.do("UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE name = ?", by.kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ATTACKS)
def test_attack__is_found_and_named(told: Story, tmp_path: Path, name: str, kind: str) -> None:
    database = tmp_path / "m.db"
    shutil.copy(told.database, database)
    story = told._replace(database=database)
    by = Attacker(story, kind)
    played = ATTACKS[name]
    played.run(by)
    by.db.close()

    async def verify(*digests: str) -> list[Finding]:
        async with MetadataStore.open(f"sqlite:///{database}") as store:
            return (await store.audit_chains.verify(checkpoint=digests)).findings

    resource, _ = played.shows
    expected = {
        "victim": {(kind, story.victims[kind])},
        "stub": {(kind, story.stubs[kind])},
    }.get(resource)
    anchored = asyncio.run(verify(*story.digests, *by.taken))
    places = {(it.resource, it.resource_id) for it in anchored}
    if expected:
        assert expected <= places, anchored
    else:
        assert resource in {it.resource for it in anchored}, anchored
    # The others are left alone, unless the whole file is another one.
    assert (kind, story.others[kind]) not in places or "chains" in name or "another" in name
    assert bool(asyncio.run(verify())) != played.needs_anchor


def test_attacks__are_forty_and_more() -> None:
    assert len(ATTACKS) >= 40


async def _killed(url: str, key: Path, dice: random.Random) -> list[str]:
    """Let a second process live in the database, kill it, and return the digests it printed."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, str(WORKER), url, str(key), str(dice.random()), stdout=PIPE
    )
    assert worker.stdout is not None
    digests = []
    try:
        for _ in range(dice.randrange(1, 4)):
            line = await worker.stdout.readline()
            assert line, "it ended by itself"
            digests.append(line.decode().strip())
        # Somewhere in what it does next.
        await asyncio.sleep(dice.random() / 50)
    finally:
        worker.kill()
        rest = await worker.stdout.read()
        await worker.wait()
    return digests + [it for it in rest.decode().split("\n")[:-1] if it]


async def _honest(folder: Path, dice: random.Random, *, killed: bool) -> Counter[str]:
    """Live honestly for a while, and verify; return what happened.

    Where it is to be `killed`, a second process goes on in the same database for a while.
    """
    done: Counter[str] = Counter()
    database, copy = folder / "m.db", folder / "copy.db"
    url = f"sqlite:///{database}"
    digests: list[str] = []
    saved: list[str] = []
    sessions: list[str] = []
    tasks: list[str] = []
    key = folder / "sign.key"
    public = generate(key)
    for step in range(6):
        async with MetadataStore.open(url, durability="normal") as store:
            repository = await store.repositories.find_by_name("app")
            assert repository is not None
            if killed and step == 3:
                digests += await _killed(url, key, dice)
                done["killed"] += 1
            for _ in range(2):
                # Also under an id that was there before.
                again = dice.random() < 0.3
                for ids, gone in ((sessions, "sessions"), (tasks, "tasks")):
                    free = [
                        it.resource_id
                        for it in (
                            await store.audit_chains.list(
                                "events" if gone == "sessions" else "tool_executions"
                            )
                        ).items
                        if it.resource_id not in ids and it.purged == it.length
                    ]
                    key_of = dice.choice(free) if free and again else new_id()
                    done["returned"] += key_of in free
                    # One whose deletion was cut short is still there.
                    with contextlib.suppress(AlreadyExists):
                        if gone == "sessions":
                            await store.sessions.create(
                                id=key_of, session_type="debug", repository_id=repository.id
                            )
                        else:
                            await store.tasks.create(id=key_of, title="t", task_type="tool")
                        ids.append(key_of)
            await _tell(store, dice.sample(sessions, 1), dice.sample(tasks, 1), dice.randrange(4))
            await store.events.append_many(dice.choice(sessions), [NewEvent("a", "b")] * 3)
            # Piece by piece, with a look at it half-way, which may be where it dies.
            deletions = []
            if dice.random() < 0.5:
                session = sessions.pop(dice.randrange(len(sessions)))
                deletions.append(asyncio.ensure_future(store.sessions.delete(session)))
            if dice.random() < 0.5:
                task = tasks.pop(dice.randrange(len(tasks)))
                deletions.append(asyncio.ensure_future(store.tasks.delete(task)))
            done["purged"] += len(deletions)
            for deletion_ in deletions:
                if dice.random() < 0.3:
                    for _ in range(dice.randrange(1, 9)):
                        await asyncio.sleep(0)
                    done["cut short"] += deletion_.cancel()
            assert (await store.audit_chains.verify()).findings == []
            await asyncio.gather(*deletions, return_exceptions=True)
            if dice.random() < 0.3:
                # It dies between the notes and the checkpoint, or before the key is replaced.
                done["died in a checkpoint"] += 1
                chains = type(store.audit_chains)(store.audit_chains._scope)

                is_made = dice.random() < 0.5

                async def dying(call: Any, run: Any = chains._run, is_made: bool = is_made) -> Any:
                    if call.statement.name != "create_audit_checkpoint":
                        return await run(call)
                    if is_made:
                        await run(call)
                    raise asyncio.CancelledError

                chains._run = dying
                with contextlib.suppress(asyncio.CancelledError):
                    await chains.checkpoint(signer=Signer(key))
            if dice.random() < 0.7:
                digests.append(await store.audit_chains.checkpoint(signer=Signer(key)))
                done["checkpoints"] += 1
            if step == 2:
                back_up(database, copy)
                saved = list(digests)
            report = await store.audit_chains.verify(
                checkpoint=digests, verify_key=public if digests else None
            )
            done["verified"] += 1
            assert report.findings == []
    restored = folder / "restored.db"
    shutil.copy(copy, restored)
    restored.chmod(0o600)
    async with MetadataStore.open(f"sqlite:///{restored}", durability="normal") as store:
        report = await store.audit_chains.verify(checkpoint=saved)
        done["verified"] += 1
        assert report.findings == []
        done["restored"] += 1
        first = (await store.audit_chains.list("events")).items[0].resource_id
        with contextlib.suppress(InvalidReference):
            await store.events.append(first, "step", "after it was restored")
        saved.append(await store.audit_chains.checkpoint())
        assert (await store.audit_chains.verify(checkpoint=saved)).findings == []
    return done


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its schema, for histories to begin with: to migrate takes longer."""
    database = tmp_path_factory.mktemp("empty") / "m.db"

    async def make() -> None:
        async with MetadataStore.open(f"sqlite:///{database}", migrate=True) as store:
            await store.repositories.create(name="app", remote_url="")

    asyncio.run(make())
    return database


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(25, id="short"),
        pytest.param(500, id="torture", marks=pytest.mark.torture),
    ],
)
def test_honest__history_raises_no_alarm(
    tmp_path: Path,
    empty: Path,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    monkeypatch.setattr(audit_chains, "PIECE", 2)
    monkeypatch.setattr(deletion, "SMALL_ROWS", 1)
    monkeypatch.setattr(deletion, "PIECE_ROWS", 2)
    done: Counter[str] = Counter()
    for seed in range(times):
        folder = tmp_path / str(seed)
        folder.mkdir()
        shutil.copy(empty, folder / "m.db")
        (folder / "m.db").chmod(0o600)
        done += asyncio.run(_honest(folder, random.Random(seed), killed=seed % 12 == 7))
        shutil.rmtree(folder)
    assert done["verified"] == 7 * times
    assert done["killed"] == len(range(7, times, 12))
    record_property("figures", f"{times} honest histories, {dict(done)}, 0 alarms")
