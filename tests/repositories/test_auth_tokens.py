"""Tokens: what they open, how they end, and that none leaks."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import hmac
import logging
import pickle
import random
import re
import string
import sys
import traceback
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from metastore.backends.sqlite.backend import SqliteBackend
from metastore.errors import (
    AlreadyExists,
    InvalidTransition,
    InvalidValue,
    NotFound,
    StoreClosed,
    TokenRejected,
)
from metastore.repositories import auth_tokens
from metastore.repositories.auth_tokens import (
    MAX_GRACE,
    MAX_TOKEN_TTL,
    TOKEN_PATTERN,
    IssuedToken,
    TokenStatus,
)
from metastore.store import MetadataStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from metastore.paging import Page
    from metastore.repositories import RepositorySet
    from metastore.repositories.auth_tokens import AuthToken
    from tests.conftest import Clock

MOMENT = timedelta(milliseconds=100)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
UNKNOWN = "0190a5a4-7f62-7000-8000-000000000000"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase


async def issue(store: RepositorySet, *scopes: Any, **values: Any) -> IssuedToken:
    values = {"user_name": "ops", "name": "ci"} | values
    return await store.auth_tokens.issue(scopes=scopes, **values)


async def all_tokens(store: RepositorySet) -> list[AuthToken]:
    return (await store.auth_tokens.list(limit=1000)).items


def checksum(body: str) -> str:
    rest, text = zlib.crc32(body.encode()), ""
    while len(text) < 6:
        rest, digit = divmod(rest, 62)
        text = ALPHABET[digit] + text
    return text


def never_issued() -> str:
    body = "mst_" + "0123456789" * 4
    return body + checksum(body)


def backend(store: MetadataStore) -> SqliteBackend:
    assert isinstance(store._backend, SqliteBackend)
    return store._backend


def writer_hops(store: MetadataStore) -> int:
    return backend(store)._writer.hops


def reader_hops(store: MetadataStore) -> int:
    return sum(lane.hops for lane in backend(store)._readers)


# Issuing


async def test_issue__stores_everything_but_the_token(store: MetadataStore, clock: Clock) -> None:
    before = clock.now
    issued = await issue(store, "sessions:read", "events:*", ttl=HOUR)
    assert before <= issued.record.created_at <= clock.now
    assert dict(issued.record) == {
        "id": issued.record.id,
        "user_name": "ops",
        "name": "ci",
        "token_prefix": issued.token[:12],
        "token_hash": hashlib.sha256(issued.token.encode()).hexdigest(),
        "scopes": ["sessions:read", "events:*"],
        "created_at": issued.record.created_at,
        "expires_at": issued.record.created_at + HOUR,
        "last_used_at": None,
        "revoked_at": None,
        "replaced_by": None,
    }
    assert await store.auth_tokens.get(issued.record.id) == issued.record


async def test_issue__a_token_is_prefix_randomness_and_checksum(store: MetadataStore) -> None:
    tokens = [(await issue(store)).token for _ in range(50)]
    for token in tokens:
        assert re.fullmatch(TOKEN_PATTERN, token)
        assert token[-6:] == checksum(token[:-6])
    bodies = [token[4:-6] for token in tokens]
    assert len(set(bodies)) == 50
    # 40 characters out of 62 are 238 bits; the shown ones leave 190, more than the promised 160.
    assert {len(body) for body in bodies} == {40}
    assert {position for body in bodies for position in body} == set(ALPHABET)
    assert all(len({body[n] for body in bodies}) > 10 for n in range(40))


async def test_issue__no_seed_makes_a_token_foreseeable(store: MetadataStore) -> None:
    tokens = set()
    for _ in range(3):
        random.seed(1)
        tokens.add((await issue(store)).token)
    assert len(tokens) == 3


async def test_issue__the_callers_id_makes_a_repetition_visible(store: MetadataStore) -> None:
    await issue(store, id=UNKNOWN)
    with pytest.raises(AlreadyExists) as caught:
        await issue(store, id=UNKNOWN)
    assert (caught.value.table, caught.value.columns) == ("auth_tokens", ("id",))


@pytest.mark.parametrize(
    "scope",
    [
        "sessions",
        "sessions:read",
        "sessions:*",
        "a:b:c:d",
        "a:b:*",
        "*",
        "web-hooks:re_try",
        "v2:9",
    ],
)
async def test_issue__takes_every_scope_of_the_grammar(store: MetadataStore, scope: Any) -> None:
    issued = await issue(store, scope)
    assert (await store.auth_tokens.get(issued.record.id)).scopes == [scope]


@pytest.mark.parametrize(
    "scope",
    [
        "",
        ":",
        "sessions:",
        ":read",
        "sessions::read",
        "sessions:**",
        "sessions:*:read",
        "*:read",
        "**",
        "ses*",
        "sessions:r*",
        "Sessions",
        "sessions read",
        "sessions,read",
        "sessions:read\n",
        "séssions",
        'x","*',
        "x" * 256,
        None,
        7,
        b"sessions",
    ],
)
async def test_issue__refuses_a_malformed_scope_and_stores_nothing(
    store: MetadataStore, scope: Any
) -> None:
    with pytest.raises(InvalidValue) as caught:
        await issue(store, "sessions:read", scope)
    assert caught.value.column == "scopes"
    assert caught.value.value_type == type(scope).__name__
    assert await all_tokens(store) == []


@pytest.mark.parametrize("scopes", ["*", "sessions", b"sessions"])
async def test_issue__one_text_is_no_list_of_scopes(store: MetadataStore, scopes: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        await store.auth_tokens.issue(user_name="ops", name="ci", scopes=scopes)
    assert caught.value.column == "scopes"
    assert await all_tokens(store) == []


@pytest.mark.parametrize(
    "values",
    [
        {"user_name": ""},
        {"user_name": "x" * 256},
        {"user_name": None},
        {"name": ""},
        {"name": "a\0b"},
        {"ttl": timedelta(0)},
        {"ttl": -SECOND},
        {"ttl": MAX_TOKEN_TTL + SECOND},
        {"ttl": 60},
        {"id": "not-an-id"},
    ],
)
async def test_issue__refuses_bad_values_and_stores_nothing(
    store: MetadataStore, values: dict[str, Any]
) -> None:
    with pytest.raises(InvalidValue) as caught:
        await issue(store, **values)
    assert caught.value.column == next(iter(values))
    assert await all_tokens(store) == []


async def test_issue__is_undone_with_its_transaction(store: MetadataStore) -> None:
    class Abandoned(Exception):
        pass

    with pytest.raises(Abandoned):
        async with store.transaction() as tx:
            issued = await issue(tx, "*")
            assert (await tx.auth_tokens.verify(issued.token)).id == issued.record.id
            raise Abandoned
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(issued.token)


# Verifying: scopes

SCOPES = [
    ("sessions:read", "sessions:read", True),
    ("sessions:read", "sessions:write", False),
    ("sessions:read", "sessions", False),
    ("sessions:read", "sessions:read:all", False),
    ("sessions:read", "sessions:reader", False),
    ("sessions", "sessions", True),
    ("sessions", "sessions:read", False),
    ("sessions:*", "sessions:read", True),
    ("sessions:*", "sessions:read:all", True),
    ("sessions:*", "sessions", False),
    ("sessions:*", "sessions2:read", False),
    ("sessions:*", "events:read", False),
    ("sessions:read:*", "sessions:read:all", True),
    ("sessions:read:*", "sessions:read", False),
    ("sessions:read:*", "sessions:write:all", False),
    ("*", "sessions", True),
    ("*", "sessions:read:all", True),
]


@pytest.mark.parametrize(("granted", "asked", "opens"), SCOPES)
async def test_verify__a_scope_opens_itself_and_what_its_star_stands_for(
    store: MetadataStore, granted: str, asked: str, opens: bool
) -> None:
    issued = await issue(store, granted)
    if opens:
        assert (await store.auth_tokens.verify(issued.token, asked)).id == issued.record.id
    else:
        with pytest.raises(TokenRejected) as caught:
            await store.auth_tokens.verify(issued.token, asked)
        assert caught.value.scope == asked


async def test_verify__any_one_of_the_scopes_is_enough(store: MetadataStore) -> None:
    issued = await issue(store, "events:read", "sessions:*")
    for scope in ("events:read", "sessions:write"):
        assert (await store.auth_tokens.verify(issued.token, scope)).user_name == "ops"
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(issued.token, "events:write")


async def test_verify__without_scopes_a_token_opens_nothing(store: MetadataStore) -> None:
    issued = await store.auth_tokens.issue(user_name="ops", name="ci")
    assert issued.record.scopes == []
    for scope in ("sessions", "sessions:read", "a"):
        with pytest.raises(TokenRejected):
            await store.auth_tokens.verify(issued.token, scope)


async def test_verify__without_a_scope_it_says_who_it_is(store: MetadataStore) -> None:
    issued = await issue(store)
    record = await store.auth_tokens.verify(issued.token)
    assert (record.id, record.user_name) == (issued.record.id, "ops")


@pytest.mark.parametrize("scope", ["", "*", "sessions:*", "Sessions", "a b", "a:", ":a", 7, ["a"]])
async def test_verify__only_a_concrete_scope_can_be_asked_for(
    store: MetadataStore, scope: Any
) -> None:
    issued = await issue(store, "*")
    # Whatever the token is, or the difference would tell which one is valid.
    for token in (issued.token, never_issued(), "nonsense"):
        with pytest.raises(InvalidValue) as caught:
            await store.auth_tokens.verify(token, scope)
        assert caught.value.column == "scope"
    with pytest.raises(InvalidValue):
        issued.record.allows(scope)


# Verifying: the token


async def test_verify__a_typing_error_at_any_position_never_reaches_the_database(
    store: MetadataStore,
) -> None:
    token = (await issue(store, "*")).token
    await store.close()
    with pytest.raises(StoreClosed):
        await store.auth_tokens.verify(token)
    mistyped = 0
    for position in range(len(token)):
        for character in ALPHABET + "_":
            if character != token[position]:
                with pytest.raises(TokenRejected):
                    await store.auth_tokens.verify(
                        token[:position] + character + token[position + 1 :]
                    )
                mistyped += 1
    assert mistyped == 50 * 62


async def test_verify__swapped_neighbours_never_reach_the_database(store: MetadataStore) -> None:
    token = (await issue(store, "*")).token
    await store.close()
    for n in range(len(token) - 1):
        if token[n] != token[n + 1]:
            with pytest.raises(TokenRejected):
                await store.auth_tokens.verify(token[:n] + token[n + 1] + token[n] + token[n + 2 :])


async def test_verify__what_is_no_token_never_reaches_the_database(store: MetadataStore) -> None:
    token = (await issue(store, "*")).token
    await store.close()
    others: list[Any] = [
        "",
        "mst_",
        token[:-1],
        token[1:],
        token + "0",
        token + "\n",
        " " + token,
        token.upper(),
        token.replace("mst_", "ghp_"),
        token.replace("mst_", ""),
        "Bearer " + token,
        token[:20] + "٣" + token[21:],
        token[:20] + "\0" + token[21:],
        "x" * 1_000_000,
        token.encode(),
        None,
        7,
        [token],
    ]
    for other in others:
        with pytest.raises(TokenRejected):
            await store.auth_tokens.verify(other)


async def test_verify__a_never_issued_token_costs_one_read(store: MetadataStore) -> None:
    reads, writes = reader_hops(store), writer_hops(store)
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(never_issued())
    assert (reader_hops(store) - reads, writer_hops(store) - writes) == (1, 0)


async def test_verify__hashes_are_compared_in_constant_time(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = await issue(store)
    compared: list[tuple[str, str]] = []

    def compare_digest(a: str, b: str) -> bool:
        compared.append((a, b))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(issued.token)
    assert compared == [(issued.record.token_hash, issued.record.token_hash)]


async def test_verify__a_token_expires_by_the_stores_clock(
    store: MetadataStore, clock: Clock
) -> None:
    issued = await issue(store, ttl=HOUR)
    clock.now = issued.record.created_at + HOUR - MOMENT
    assert (await store.auth_tokens.verify(issued.token)).id == issued.record.id
    clock.now = issued.record.created_at + HOUR
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(issued.token)


async def test_verify__a_token_without_ttl_does_not_expire(
    store: MetadataStore, clock: Clock
) -> None:
    issued = await issue(store)
    assert issued.record.expires_at is None
    clock.now += 100 * timedelta(days=365)
    assert (await store.auth_tokens.verify(issued.token)).id == issued.record.id


async def test_verify__every_refusal_looks_the_same(store: MetadataStore, clock: Clock) -> None:
    unscoped = await issue(store, "events:*")
    expired = await issue(store, "*", ttl=HOUR)
    revoked = await issue(store, "*")
    await store.auth_tokens.revoke(revoked.record.id)
    replaced = await issue(store, "*")
    await store.auth_tokens.rotate(replaced.record.id, grace=timedelta(0))
    clock.now += HOUR
    mistyped = unscoped.token[:-1] + ("1" if unscoped.token[-1] == "0" else "0")
    answers = set()
    for token in (
        never_issued(),
        mistyped,
        "nonsense",
        unscoped.token,
        expired.token,
        revoked.token,
        replaced.token,
    ):
        with pytest.raises(TokenRejected) as caught:
            await store.auth_tokens.verify(token, "sessions:read")
        error = caught.value
        [raised_in] = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "repositories/auth_tokens" in frame.filename
        ]
        answers.add(
            (
                type(error),
                str(error),
                repr(error),
                error.args,
                tuple(vars(error).items()),
                error.__cause__,
                error.__context__,
                raised_in.lineno,
            )
        )
    assert len(answers) == 1


# Verifying: last_used_at


async def test_verify__use_is_noted_at_most_once_a_minute(
    store: MetadataStore, clock: Clock
) -> None:
    issued = await issue(store)
    start, writes = clock.now, writer_hops(store)
    noted = []
    for n in range(18):
        clock.now = start + n * 10 * SECOND
        noted.append((await store.auth_tokens.verify(issued.token)).last_used_at)
    first, second, third = noted[0], noted[6], noted[12]
    assert noted == [first] * 6 + [second] * 6 + [third] * 6
    assert first is not None
    assert (second, third) == (first + MINUTE, first + 2 * MINUTE)
    assert writer_hops(store) - writes == 3
    assert (await store.auth_tokens.get(issued.record.id)).last_used_at == third


async def test_verify__concurrent_uses_are_noted_in_one_row_change(store: MetadataStore) -> None:
    issued = await issue(store)
    changes = backend(store)._writer.connection.raw.total_changes
    records = await asyncio.gather(*(store.auth_tokens.verify(issued.token) for _ in range(100)))
    assert {record.id for record in records} == {issued.record.id}
    assert backend(store)._writer.connection.raw.total_changes - changes == 1
    noted = (await store.auth_tokens.get(issued.record.id)).last_used_at
    assert noted in {record.last_used_at for record in records} - {None}


async def test_verify__the_minute_is_each_tokens_own(store: MetadataStore) -> None:
    first, second = await issue(store), await issue(store)
    await store.auth_tokens.verify(first.token)
    assert (await store.auth_tokens.get(second.record.id)).last_used_at is None
    writes = writer_hops(store)
    await store.auth_tokens.verify(second.token)
    assert writer_hops(store) - writes == 1


async def test_verify__a_refusal_is_no_use(store: MetadataStore) -> None:
    issued = await issue(store, "events:read")
    writes = writer_hops(store)
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(issued.token, "events:write")
    assert writer_hops(store) == writes
    assert (await store.auth_tokens.get(issued.record.id)).last_used_at is None


async def test_verify__a_clock_that_jumped_back_neither_fails_nor_writes(
    store: MetadataStore, clock: Clock
) -> None:
    issued = await issue(store)
    used_at = (await store.auth_tokens.verify(issued.token)).last_used_at
    clock.now -= HOUR
    writes = writer_hops(store)
    assert (await store.auth_tokens.verify(issued.token)).last_used_at == used_at
    assert writer_hops(store) == writes


async def test_verify__a_store_that_takes_no_writes_locks_nobody_out(store: MetadataStore) -> None:
    issued = await issue(store, "sessions:read")
    raw = backend(store)._writer.connection.raw
    raw.execute("PRAGMA query_only = ON")
    record = await store.auth_tokens.verify(issued.token, "sessions:read")
    assert record == issued.record
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(issued.token, "sessions:write")
    raw.execute("PRAGMA query_only = OFF")
    assert (await store.auth_tokens.verify(issued.token)).last_used_at is not None


async def test_verify__works_beside_the_callers_own_transaction(store: MetadataStore) -> None:
    issued = await issue(store)
    async with store.transaction():
        assert await store.auth_tokens.verify(issued.token) == issued.record


# Rotating


async def test_rotate__both_work_during_grace_and_then_only_the_new_one(
    store: MetadataStore, clock: Clock
) -> None:
    old = await issue(store, "sessions:*", ttl=30 * HOUR)
    clock.now += 2 * HOUR
    new = await store.auth_tokens.rotate(old.record.id, grace=HOUR)
    assert new.token != old.token
    assert dict(new.record) == dict(old.record) | {
        "id": new.record.id,
        "token_prefix": new.token[:12],
        "token_hash": hashlib.sha256(new.token.encode()).hexdigest(),
        "created_at": new.record.created_at,
        "expires_at": new.record.created_at + 30 * HOUR,
    }
    assert old.record.created_at + 2 * HOUR <= new.record.created_at <= clock.now
    replaced = await store.auth_tokens.get(old.record.id)
    assert replaced.expires_at == new.record.created_at + HOUR
    assert replaced.replaced_by == new.record.id
    assert replaced.revoked_at is None

    clock.now = replaced.expires_at - MOMENT
    for issued in (old, new):
        record = await store.auth_tokens.verify(issued.token, "sessions:read")
        assert record.id == issued.record.id
    clock.now = replaced.expires_at
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(old.token, "sessions:read")
    assert (await store.auth_tokens.verify(new.token)).id == new.record.id


async def test_rotate__a_token_that_never_expires_is_replaced_by_one_that_never_does(
    store: MetadataStore,
) -> None:
    old = await issue(store, "*")
    new = await store.auth_tokens.rotate(old.record.id, grace=HOUR)
    assert new.record.expires_at is None
    replaced = await store.auth_tokens.get(old.record.id)
    assert replaced.expires_at == new.record.created_at + HOUR


async def test_rotate__grace_never_prolongs_the_old_token(
    store: MetadataStore, clock: Clock
) -> None:
    old = await issue(store, ttl=HOUR)
    clock.now += HOUR / 2
    await store.auth_tokens.rotate(old.record.id, grace=10 * HOUR)
    assert (await store.auth_tokens.get(old.record.id)).expires_at == old.record.expires_at


async def test_rotate__without_grace_the_old_token_ends_at_once(store: MetadataStore) -> None:
    old = await issue(store, "*")
    new = await store.auth_tokens.rotate(old.record.id, grace=timedelta(0))
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(old.token)
    assert (await store.auth_tokens.verify(new.token)).id == new.record.id


async def test_rotate__the_replacement_can_be_rotated_in_turn(store: MetadataStore) -> None:
    first = await issue(store, "events:*", ttl=HOUR)
    second = await store.auth_tokens.rotate(first.record.id)
    third = await store.auth_tokens.rotate(second.record.id)
    assert third.record.scopes == ["events:*"]
    for issued in (first, second, third):
        assert (await store.auth_tokens.verify(issued.token)).id == issued.record.id


@pytest.mark.parametrize("ended", list(TokenStatus)[1:])
async def test_rotate__only_a_live_token_that_was_not_replaced(
    store: MetadataStore, clock: Clock, ended: TokenStatus
) -> None:
    old = await issue(store, "*", ttl=2 * HOUR)
    if ended is TokenStatus.REPLACED:
        await store.auth_tokens.rotate(old.record.id, grace=HOUR)
    elif ended is TokenStatus.EXPIRED:
        clock.now += 2 * HOUR
    else:
        await store.auth_tokens.revoke(old.record.id)
    before = await all_tokens(store)
    with pytest.raises(InvalidTransition) as caught:
        await store.auth_tokens.rotate(old.record.id)
    assert (caught.value.table, caught.value.from_state, caught.value.to_state) == (
        "auth_tokens",
        ended,
        TokenStatus.REPLACED,
    )
    assert caught.value.row == await store.auth_tokens.get(old.record.id)
    assert await all_tokens(store) == before


async def test_rotate__unknown_token_is_not_found(store: MetadataStore) -> None:
    with pytest.raises(NotFound) as caught:
        await store.auth_tokens.rotate(UNKNOWN)
    assert caught.value.key == UNKNOWN


@pytest.mark.parametrize("grace", [-SECOND, MAX_GRACE + SECOND, 60, None])
async def test_rotate__refuses_a_grace_out_of_range(store: MetadataStore, grace: Any) -> None:
    old = await issue(store)
    with pytest.raises(InvalidValue) as caught:
        await store.auth_tokens.rotate(old.record.id, grace=grace)
    assert caught.value.column == "grace"
    assert await all_tokens(store) == [old.record]


async def test_rotate__one_of_many_racers_wins(store: MetadataStore) -> None:
    old = await issue(store, "*")
    results = await asyncio.gather(
        *(store.auth_tokens.rotate(old.record.id) for _ in range(8)), return_exceptions=True
    )
    [new] = [result for result in results if isinstance(result, IssuedToken)]
    lost = [result for result in results if isinstance(result, InvalidTransition)]
    assert len(lost) == 7
    assert all(error.row.replaced_by == new.record.id for error in lost)
    assert len(await all_tokens(store)) == 2


async def test_rotate__is_undone_as_a_whole_with_its_transaction(store: MetadataStore) -> None:
    class Abandoned(Exception):
        pass

    old = await issue(store, "*")
    with pytest.raises(Abandoned):
        async with store.transaction() as tx:
            await tx.auth_tokens.rotate(old.record.id, grace=timedelta(0))
            raise Abandoned
    assert await all_tokens(store) == [old.record]


async def test_rotate__a_refused_one_leaves_nothing_in_a_transaction_that_goes_on(
    store: MetadataStore,
) -> None:
    old = await issue(store, "*")
    await store.auth_tokens.revoke(old.record.id)
    async with store.transaction() as tx:
        with pytest.raises(InvalidTransition):
            await tx.auth_tokens.rotate(old.record.id)
        await tx.projects.ensure(path="/srv/shop")
    assert len(await all_tokens(store)) == 1
    assert await store.projects.find_by_path("/srv/shop") is not None


# Revoking


async def test_revoke__ends_a_token_at_once(store: MetadataStore, clock: Clock) -> None:
    issued = await issue(store, "*")
    record = await store.auth_tokens.revoke(issued.record.id)
    assert dict(record) == dict(issued.record) | {"revoked_at": record.revoked_at}
    assert record.revoked_at is not None
    assert issued.record.created_at <= record.revoked_at <= clock.now
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(issued.token)


async def test_revoke__the_first_time_stands(store: MetadataStore, clock: Clock) -> None:
    issued = await issue(store)
    first = await store.auth_tokens.revoke(issued.record.id)
    clock.now += HOUR
    assert await store.auth_tokens.revoke(issued.record.id) == first


async def test_revoke__ends_the_grace_of_a_replaced_token(store: MetadataStore) -> None:
    old = await issue(store, "*")
    new = await store.auth_tokens.rotate(old.record.id, grace=HOUR)
    await store.auth_tokens.revoke(old.record.id)
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(old.token)
    assert (await store.auth_tokens.verify(new.token)).id == new.record.id


async def test_revoke__unknown_token_is_not_found(store: MetadataStore) -> None:
    with pytest.raises(NotFound):
        await store.auth_tokens.revoke(UNKNOWN)


async def test_status__says_what_became_of_a_token(store: MetadataStore, clock: Clock) -> None:
    active = (await issue(store, ttl=2 * HOUR)).record
    replaced = (await issue(store)).record
    await store.auth_tokens.rotate(replaced.id, grace=HOUR)
    replaced = await store.auth_tokens.get(replaced.id)
    revoked = await store.auth_tokens.revoke((await issue(store, ttl=HOUR)).record.id)
    now = clock.now
    assert active.status(now) is TokenStatus.ACTIVE
    assert replaced.status(now) is TokenStatus.REPLACED
    assert revoked.status(now) is TokenStatus.REVOKED
    assert [token.is_live(now) for token in (active, replaced, revoked)] == [True, True, False]
    later = now + 2 * HOUR
    assert active.status(later) is TokenStatus.EXPIRED
    assert replaced.status(later) is TokenStatus.EXPIRED
    assert revoked.status(later) is TokenStatus.REVOKED


# Reading


async def test_get__unknown_token_is_not_found(store: MetadataStore) -> None:
    with pytest.raises(NotFound) as caught:
        await store.auth_tokens.get(UNKNOWN)
    assert (caught.value.table, caught.value.key) == ("auth_tokens", UNKNOWN)


async def walk(
    read: Callable[[str | None], Awaitable[Page[AuthToken, str]]],
) -> list[AuthToken]:
    seen: list[AuthToken] = []
    after: str | None = None
    while True:
        page = await read(after)
        assert len(page.items) <= 3
        seen += page.items
        after = page.next
        if after is None:
            return seen


async def test_list__pages_walk_all_tokens_in_the_order_of_issue(store: MetadataStore) -> None:
    issued = [(await issue(store, user_name=f"user-{n % 2}")).record for n in range(7)]
    assert await walk(lambda after: store.auth_tokens.list(after=after, limit=3)) == issued


async def test_list_by_user__pages_walk_one_users_tokens(store: MetadataStore) -> None:
    issued = [(await issue(store, user_name=f"user-{n % 2}")).record for n in range(14)]
    seen = await walk(lambda after: store.auth_tokens.list_by_user("user-1", after=after, limit=3))
    assert seen == issued[1::2]
    assert (await store.auth_tokens.list_by_user("user-2")).items == []


# The first admin token


async def bootstrap(store: MetadataStore, **values: Any) -> IssuedToken:
    issued = await store.auth_tokens.bootstrap(**values)
    assert issued is not None
    return issued


async def test_bootstrap__issues_one_token_for_everything(store: MetadataStore) -> None:
    issued = await bootstrap(store)
    assert issued.record.scopes == ["*"]
    assert (issued.record.user_name, issued.record.expires_at) == ("admin", None)
    assert (await store.auth_tokens.verify(issued.token, "any:thing")).id == issued.record.id
    assert await store.auth_tokens.bootstrap() is None
    assert await all_tokens(store) == [await store.auth_tokens.get(issued.record.id)]


@pytest.mark.parametrize("scopes", [["*"], ["sessions:read", "*"], ["*", "sessions:*"]])
async def test_bootstrap__any_live_token_for_everything_is_enough(
    store: MetadataStore, scopes: Any
) -> None:
    await issue(store, *scopes)
    assert await store.auth_tokens.bootstrap() is None


@pytest.mark.parametrize("scopes", [[], ["sessions:*"], ["admin:*", "sessions:read"]])
async def test_bootstrap__a_lesser_token_is_not(store: MetadataStore, scopes: Any) -> None:
    await issue(store, *scopes)
    assert await store.auth_tokens.bootstrap() is not None


async def test_bootstrap__lets_in_again_when_every_admin_token_has_ended(
    store: MetadataStore, clock: Clock
) -> None:
    first = await bootstrap(store, ttl=HOUR)
    assert await store.auth_tokens.bootstrap() is None
    clock.now += HOUR
    second = await bootstrap(store)
    await store.auth_tokens.revoke(second.record.id)
    third = await bootstrap(store)
    assert len({first.token, second.token, third.token}) == 3
    assert await store.auth_tokens.bootstrap() is None


async def test_bootstrap__one_of_many_racers_on_several_connections_gets_a_token(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/metadata.db"
    async with (
        MetadataStore.open(url, migrate=True) as first,
        MetadataStore.open(url) as second,
        MetadataStore.open(url) as third,
    ):
        results = await asyncio.gather(
            *(store.auth_tokens.bootstrap() for store in (first, second, third) * 4)
        )
        assert len([result for result in results if result is not None]) == 1
        assert len(await all_tokens(first)) == 1


# Secrecy


async def test_issued_token__neither_repr_str_nor_format_shows_it(store: MetadataStore) -> None:
    issued = await issue(store, "*")
    for text in (repr(issued), str(issued), f"{issued}", f"{[issued]}", repr(issued.record)):
        assert issued.token not in text
        assert issued.token[12:] not in text
    assert issued.record.token_prefix in repr(issued)


async def test_issued_token__is_not_pickled_copied_or_encoded(store: MetadataStore) -> None:
    issued = await issue(store, "*")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(issued, protocol)
    for refused in (copy.copy, copy.deepcopy, vars, msgspec.json.encode, msgspec.to_builtins):
        with pytest.raises(TypeError) as caught:
            refused(issued)
        assert issued.token not in str(caught.value)
    assert issued.token not in repr(pickle.dumps(issued.record))


async def test_issued_token__is_not_changed(store: MetadataStore) -> None:
    issued = await issue(store, "*")
    with pytest.raises(AttributeError):
        issued.token = "mst_"  # type: ignore[misc]


def shown(error: BaseException) -> str:
    """Return what a report of `error` shows at most: all frames of the package, with variables."""
    report: traceback.TracebackException | None = traceback.TracebackException.from_exception(
        error, capture_locals=True
    )
    lines: list[str] = []
    while report is not None:
        lines += report.format_exception_only()
        lines += [
            f"{frame.name} {frame.locals}"
            for frame in report.stack
            if "/tests/" not in frame.filename
        ]
        report = report.__cause__ or report.__context__
    return "\n".join(lines)


async def test_verify__no_exception_shows_the_token(store: MetadataStore) -> None:
    issued = await issue(store, "events:read")
    mistyped = issued.token[:-1] + ("1" if issued.token[-1] == "0" else "0")
    asked = [
        (issued.token, "events:write", TokenRejected),
        (issued.token, "events:*", InvalidValue),
        (mistyped, None, TokenRejected),
    ]
    for token, scope, expected in asked:
        with pytest.raises(expected) as caught:
            await store.auth_tokens.verify(token, scope)
        report = shown(caught.value)
        assert "verify" in report
        assert token not in report
        assert token[12:] not in report
    await store.close()
    with pytest.raises(StoreClosed) as caught:
        await store.auth_tokens.verify(issued.token)
    assert "verify" in shown(caught.value)
    assert issued.token[12:] not in shown(caught.value)


async def test_issue__no_exception_shows_the_token(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[auth_tokens._Secret] = []
    make = auth_tokens._Secret

    def remember() -> auth_tokens._Secret:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(auth_tokens, "_Secret", remember)
    await issue(store, id=UNKNOWN)
    revoked = await store.auth_tokens.revoke((await issue(store)).record.id)
    attempts = [
        (issue(store, id=UNKNOWN), AlreadyExists),
        (issue(store, user_name=""), InvalidValue),
        (store.auth_tokens.bootstrap(name=""), InvalidValue),
        (store.auth_tokens.rotate(revoked.id), InvalidTransition),
    ]
    for attempt, expected in attempts:
        before = len(made)
        with pytest.raises(expected) as caught:
            await attempt
        [secret] = made[before:]
        report = shown(caught.value)
        assert secret.prefix in report
        assert secret.token[12:] not in report


async def test_no_log_shows_a_token(store: MetadataStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="aiosqlite")
    issued = await issue(store, "*")
    await store.auth_tokens.verify(issued.token, "sessions:read")
    rotated = await store.auth_tokens.rotate(issued.record.id)
    with pytest.raises(TokenRejected):
        await store.auth_tokens.verify(never_issued())
    await store.close()
    assert "aiosqlite" in {record.name for record in caplog.records}
    logged = caplog.text + repr([vars(record) for record in caplog.records])
    for token in (issued.token, rotated.token, never_issued()):
        assert token not in logged
        assert token[12:] not in logged


async def test_no_file_holds_a_token(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    async with MetadataStore.open(f"sqlite:///{path}", migrate=True) as store:
        first = await issue(store, "*")
        await store.auth_tokens.verify(first.token, "sessions:read")
        second = await store.auth_tokens.rotate(first.record.id)
        await store.auth_tokens.verify(second.token)
        await store.auth_tokens.revoke(second.record.id)
        # While connected, this process must not open the files itself.
        reader = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import pathlib, sys\n"
            "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
            "    sys.stdout.buffer.write(path.read_bytes())",
            str(tmp_path),
            stdout=asyncio.subprocess.PIPE,
        )
        connected, _ = await reader.communicate()
    closed = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for stored in (connected, closed):
        for issued in (first, second):
            assert issued.record.token_hash.encode() in stored
            assert issued.record.token_prefix.encode() in stored
            assert issued.token[:13].encode() not in stored
            assert issued.token[12:].encode() not in stored
