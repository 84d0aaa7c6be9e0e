"""What processes of different releases believe of each other's expiries."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import Lease, LeaseUnavailable, LockHeld, MetadataStore, ProjectLock, TaskLease
from metastore.leasing.limits import CLOCK_SKEW, MAX_TTL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Take = Callable[[MetadataStore, dict[str, Any], timedelta], Awaitable[object]]

MINUTE = timedelta(minutes=1)

OTHER_RELEASE = """
import asyncio, json, sys
from datetime import timedelta

from metastore.leasing import limits

max_ttl, clock_skew, ttl, databases = map(json.loads, sys.argv[1:])
limits.MAX_TTL = timedelta(seconds=max_ttl)
limits.CLOCK_SKEW = timedelta(seconds=clock_skew)

from metastore import MetadataStore, MetastoreError
from tests.test_leasing_limits import TAKES

async def take(kind, url, facts):
    try:
        async with MetadataStore.open(url) as store:
            await TAKES[kind](store, facts, timedelta(seconds=ttl))
            return "held"
    except MetastoreError as error:
        return type(error).__name__

async def main():
    return {kind: await take(kind, *known) for kind, known in databases.items()}

print(json.dumps(asyncio.run(main())))
"""
"""A process of a release with other limits: it takes one thing of each kind, and leaves it held."""


async def _worktree(store: MetadataStore, facts: dict[str, Any], ttl: timedelta) -> Lease:
    return await store.worktrees.acquire(facts["repository"], owner=facts["owner"], ttl=ttl)


async def _reserved(store: MetadataStore, facts: dict[str, Any], ttl: timedelta) -> Lease:
    [worktree] = (await store.worktrees.list_by_repository(facts["repository"])).items
    return await store.worktrees.reserve(worktree, owner=facts["owner"], ttl=ttl)


async def _lock(store: MetadataStore, facts: dict[str, Any], ttl: timedelta) -> ProjectLock:
    session = facts["sessions"][facts["owner"]]
    return await store.project_locks.acquire(
        project_id=facts["project"], session_id=session, ttl=ttl
    )


def _claim(task_types: list[str] | None, spread: bool) -> Take:
    async def take(store: MetadataStore, facts: dict[str, Any], ttl: timedelta) -> TaskLease:
        return await store.tasks.claim(
            owner=facts["owner"], ttl=ttl, task_types=task_types, spread=spread
        )

    return take


TAKES: dict[str, Take] = {
    "worktree": _worktree,
    "reserved worktree": _reserved,
    "project lock": _lock,
    "task": _claim(None, spread=False),
    "task of types": _claim(["a", "b"], spread=False),
    "task in turn": _claim(None, spread=True),
    "task of types in turn": _claim(["a", "b"], spread=True),
}


async def _filled(store: MetadataStore) -> dict[str, Any]:
    """Make one thing of each kind to take, and another that is not asked for."""
    made = {}
    for name in ("asked for", "other"):
        repository = await store.repositories.create(name=name, remote_url="")
        project = await store.projects.ensure(path=f"/projects/{name}")
        await store.worktrees.create(repository_id=repository.id, path=f"/worktrees/{name}")
        sessions = {
            owner: (
                await store.sessions.create(
                    session_type="test_generation", project_path=project.path
                )
            ).id
            for owner in ("this", "other")
        }
        made[name] = {
            "repository": repository.id,
            "project": project.id,
            "sessions": sessions,
        }
    await store.tasks.create(title="t", task_type="a", workspace_path="/a")
    return made["asked for"]


@pytest.mark.parametrize(
    ("max_ttl", "clock_skew", "ttl"),
    [
        pytest.param(timedelta(days=30), CLOCK_SKEW, timedelta(days=20), id="longer ttl"),
        pytest.param(MAX_TTL, timedelta(days=20), MAX_TTL, id="larger skew"),
        pytest.param(timedelta(days=1), CLOCK_SKEW, timedelta(hours=1), id="shorter ttl"),
    ],
)
async def test_releases__of_other_limits_never_hold_the_same(
    tmp_path: Path, max_ttl: timedelta, clock_skew: timedelta, ttl: timedelta
) -> None:
    async with contextlib.AsyncExitStack() as stores:
        opened = {}
        databases = {}
        for kind in TAKES:
            url = f"sqlite:///{tmp_path}/{kind.replace(' ', '-')}.db"
            store = await stores.enter_async_context(MetadataStore.open(url, migrate=True))
            facts = await _filled(store)
            opened[kind] = (store, facts | {"owner": "this"})
            databases[kind] = (url, facts | {"owner": "other"})
        spans = (span.total_seconds() for span in (max_ttl, clock_skew, ttl))
        other = subprocess.run(
            [sys.executable, "-c", OTHER_RELEASE, *map(json.dumps, (*spans, databases))],
            capture_output=True,
            text=True,
            check=True,
        )
        answers = json.loads(other.stdout)
        holders = {kind: [answer] for kind, answer in answers.items() if answer == "held"}
        for kind, (store, facts) in opened.items():
            with contextlib.suppress(LeaseUnavailable, LockHeld):
                await TAKES[kind](store, facts, MINUTE)
                holders.setdefault(kind, []).append("held too")
    assert {kind: len(each) for kind, each in holders.items()} == dict.fromkeys(TAKES, 1)
    assert answers == dict.fromkeys(TAKES, "LimitsMismatch")
