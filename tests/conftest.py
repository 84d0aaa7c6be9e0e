"""What the tests of every part share."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from metastore.backends.sqlite import lanes
from metastore.testing import Clock

if TYPE_CHECKING:
    from metastore import MetadataStore, Repository, Session

__all__ = ["Clock"]

pytest_plugins = ["metastore.testing", "pytester"]

# Tests start hundreds of interpreters: compile what they import once, whatever the shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No test cuts the power, so fsync has nothing to prove: keep databases in memory where there is
# room. A container's /dev/shm may hold as little as 64 MiB.
SHARED_MEMORY = Path("/dev/shm")
if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHARED_MEMORY))

# The same examples in every run, however long one takes.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


@pytest.fixture
async def repository(store: MetadataStore) -> Repository:
    return await store.repositories.create(name="app", remote_url="git@example.com:app.git")


@pytest.fixture
async def session(store: MetadataStore, repository: Repository) -> Session:
    return await store.sessions.create(session_type="debug", repository_id=repository.id)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch run for as long as it takes: how many share one depends on no machine's speed."""
    monkeypatch.setattr(lanes, "MAX_HOLD", 60.0)


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
