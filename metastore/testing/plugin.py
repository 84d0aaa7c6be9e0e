"""The fixtures and the pytest option of the testing kit, see `metastore.testing`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from metastore.backends import opening
from metastore.store import MetadataStore
from metastore.testing.clock import Clock
from metastore.testing.factories import Factories
from metastore.testing.faults import Faults
from metastore.testing.template import write_template

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator
    from datetime import datetime

__all__ = [
    "clock",
    "factories",
    "faults",
    "file_store",
    "store",
    "store_url",
]

_FOLDER = pytest.StashKey[Path]()
_KEPT = pytest.StashKey[list[Path]]()
_HANDED_DOWN = "metastore_kept_databases"


@pytest.fixture
def clock() -> Clock:
    """The clock of the stores, which the test moves."""
    return Clock()


@pytest_asyncio.fixture
async def store(
    request: pytest.FixtureRequest, clock: Callable[[], datetime]
) -> AsyncIterator[MetadataStore]:
    """An empty store in memory."""
    kept = _kept_database(request)
    url = "sqlite://" if kept is None else str(opening.url_of_file(kept))
    async with MetadataStore.open(url, clock=clock) as opened:
        yield opened


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store in a file that is not open."""
    path = _kept_database(request)
    if path is None:
        path = tmp_path / "metadata.db"
        write_template(path)
    return str(opening.url_of_file(path))


@pytest_asyncio.fixture
async def file_store(store_url: str, clock: Callable[[], datetime]) -> AsyncIterator[MetadataStore]:
    """An empty store in a file, the one that `store_url` names."""
    async with MetadataStore.open(store_url, clock=clock) as opened:
        yield opened


@pytest.fixture
def factories(store: MetadataStore) -> Factories:
    """Makes rows in `store`."""
    return Factories(store)


@pytest.fixture
def faults(store: MetadataStore) -> Faults:
    """Plants faults in `store`."""
    return Faults(store)


# --keep-db


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("metastore").addoption(
        "--keep-db",
        action="store_true",
        help="keep the database of every test for inspection",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Create the folder for the databases, or use the one of pytest-xdist's controller."""
    if config.getoption("keep_db", False):
        handed_down = getattr(config, "workerinput", {}).get(_HANDED_DOWN)
        config.stash[_FOLDER] = Path(handed_down or tempfile.mkdtemp(prefix="metastore-kept-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the folder to a worker of pytest-xdist."""
    folder = node.config.stash.get(_FOLDER, None)
    if folder is not None:
        node.workerinput[_HANDED_DOWN] = str(folder)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print where the databases are."""
    folder = config.stash.get(_FOLDER, None)
    if folder is None:
        return
    if any(folder.iterdir()):
        terminalreporter.write_line(f"metastore keeps the databases in {folder}")
    else:
        folder.rmdir()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print with a failure where the test's databases are."""
    report = yield
    if report.failed:
        kept = item.stash.get(_KEPT, [])
        commands = [opening.shell_command(opening.url_of_file(path)) for path in kept]
        if commands:
            report.sections.append(("metastore --keep-db", "\n".join(commands)))
    return report


def _kept_database(request: pytest.FixtureRequest) -> Path | None:
    """Return a database that outlives the test; None without `--keep-db`."""
    folder = request.config.stash.get(_FOLDER, None)
    if folder is None:
        return None
    name = re.sub(r"\W+", "-", request.node.nodeid).strip("-")[-150:]
    kept = request.node.stash.setdefault(_KEPT, [])
    number = 0
    while True:
        path = folder / (f"{name}.db" if number == 0 else f"{name}.{number}.db")
        try:
            write_template(path)
        except FileExistsError:
            number += 1
        else:
            kept.append(path)
            return path
