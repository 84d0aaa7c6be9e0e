"""Stores in the workers of servers: real processes, forked or spawned."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from metastore import MetadataStore
from metastore.testing import Factories
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REQUESTS = 60


@pytest.fixture
async def url(store_url: str) -> str:
    async with MetadataStore.open(store_url) as store:
        await Factories(store).session()
    return store_url


def _stored(url: str) -> set[str]:
    path = url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {id_ for (id_,) in connection.execute("SELECT id FROM events")}


@contextlib.contextmanager
def _running(*command: str, url: str, log: Path, **environment: str) -> Iterator[None]:
    """Run a server in a process group of its own, and end it."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, "METASTORE_DB_URL": url, "PYTHONPATH": os.getcwd(), **environment},
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            yield
            assert server.poll() is None, log.read_text()
            server.terminate()
            server.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _ask(port: int, log: Path) -> list[dict[str, Any]]:
    """Ask the server until two of its workers have answered, and then a number of times."""
    deadline = time.monotonic() + PATIENCE

    def ask() -> dict[str, Any]:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as got:
                    answer: dict[str, Any] = json.load(got)
                    return answer
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)

    answers: list[dict[str, Any]] = []
    with ThreadPoolExecutor(8) as threads:
        while len(answers) < REQUESTS or len({it["pid"] for it in answers}) < 2:
            assert time.monotonic() < deadline, f"one worker only: {answers[:1]}"
            answers += threads.map(lambda _: ask(), range(8))
    return answers


def _lost(url: str, answers: list[dict[str, Any]]) -> str:
    acknowledged = {it["id"] for it in answers if "id" in it}
    assert acknowledged == _stored(url)
    workers = len({it["pid"] for it in answers})
    return f"{len(acknowledged)} acknowledged by {workers} workers, none lost"


@pytest.mark.parametrize("early", [False, True], ids=["opened after", "opened before the fork"])
def test_gunicorn__with_preload(
    url: str, tmp_path: Path, early: bool, record_property: Callable[[str, object], None]
) -> None:
    port, log = _free_port(), tmp_path / "log"
    options = ["--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    with _running(
        "gunicorn", *options, "tests.servers.application:wsgi",
        url=url, log=log, EARLY="1" if early else "",
    ):  # fmt: skip
        answers = _ask(port, log)
    if early:
        assert {it["error"] for it in answers} == {"OpenedBeforeFork"}
        assert all("after the fork" in it["text"] for it in answers)
        assert _stored(url) == set()
    else:
        record_property("figures", _lost(url, answers))


def test_uvicorn__with_workers(
    url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    port, log = _free_port(), tmp_path / "log"
    options = ["--workers", "2", "--port", str(port), "--lifespan", "on"]
    with _running("uvicorn", *options, "tests.servers.application:asgi", url=url, log=log):
        answers = _ask(port, log)
    record_property("figures", _lost(url, answers))


@pytest.mark.parametrize("early", [False, True], ids=["opened after", "opened before the fork"])
def test_celery__prefork(
    url: str, tmp_path: Path, early: bool, record_property: Callable[[str, object], None]
) -> None:
    folder, log = tmp_path / "celery", tmp_path / "log"
    folder.mkdir()
    environment = {"CELERY_FOLDER": str(folder), "EARLY": "1" if early else ""}
    call = (
        "import json\nfrom tests.servers.tasks import append\n"
        f"calls = [append.delay() for _ in range({REQUESTS})]\n"
        f"print(json.dumps([call.get(timeout={PATIENCE}) for call in calls]))"
    )
    with _running(
        "celery", "-A", "tests.servers.tasks", "worker", "--pool", "prefork", "--concurrency", "2",
        "--without-gossip", "--without-mingle", url=url, log=log, **environment,
    ):  # fmt: skip
        asked = subprocess.run(
            [sys.executable, "-c", call], capture_output=True, text=True, check=False,
            env={**os.environ, "METASTORE_DB_URL": url, **environment, "EARLY": ""},
            timeout=2 * PATIENCE,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr + log.read_text()
        answers = json.loads(asked.stdout)
    assert len(answers) == REQUESTS
    if early:
        assert {it["error"] for it in answers} == {"OpenedBeforeFork"}
        assert _stored(url) == set()
    else:
        record_property("figures", _lost(url, answers))
