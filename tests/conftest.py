"""What the tests of every part share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from metastore import MetadataStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from metastore import Repository, Session


class Clock:
    """A clock to move. It ticks with each reading, so that no two operations share a time."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(clock: Clock) -> AsyncIterator[MetadataStore]:
    async with MetadataStore.open("sqlite://", clock=clock) as store:
        yield store


@pytest.fixture
async def repository(store: MetadataStore) -> Repository:
    return await store.repositories.create(name="app", remote_url="git@example.com:app.git")


@pytest.fixture
async def session(store: MetadataStore, repository: Repository) -> Session:
    return await store.sessions.create(session_type="debug", repository_id=repository.id)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="run the long batteries too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--torture"):
        skip = pytest.mark.skip(reason="long; `make torture` runs it")
        for item in items:
            if "torture" in item.keywords:
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the batteries counted: collisions, kills, refusals."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
