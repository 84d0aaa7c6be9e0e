"""Processes that compete for what is leased, and are killed and stopped meanwhile."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Crew"]


class Crew:
    """The processes of a battery, and what is done to them.

    Each runs `worker DATABASE LEDGER *ARGUMENTS SEED`, and writes what it does to its ledger. One
    that stops itself goes on after `pause` seconds, when what it held has expired.
    """

    def __init__(
        self, worker: str, folder: Path, database: str, *arguments: str, pause: float
    ) -> None:
        folder.mkdir()
        self.kills = 0
        self.stops = 0
        self._worker = Path(__file__).with_name(worker)
        self._folder = folder
        self._database = database
        self._arguments = arguments
        self._pause = pause
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopped: dict[int, float] = {}
        self._started = 0
        self._random = random.Random(7)

    def start(self) -> None:
        """Start another process."""
        self._started += 1
        ledger = str(self._folder / f"{self._started}.jsonl")
        command = [self._database, ledger, *self._arguments, str(self._started)]
        with (self._folder / f"{self._started}.stderr").open("wb") as errors:
            self._processes.append(
                subprocess.Popen([sys.executable, self._worker, *command], stderr=errors)
            )

    def kill_one(self) -> None:
        """Kill a process, and start another in its place."""
        process = self._random.choice(self._processes)
        process.kill()
        process.wait()
        self._stopped.pop(process.pid, None)
        self._processes.remove(process)
        self.kills += 1
        self.start()

    def wake_the_stopped(self) -> None:
        """Let processes go on that stopped themselves `pause` seconds ago."""
        for process in self._processes:
            assert process.poll() is None, self.stderr()
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T" and process.pid not in self._stopped:
                self._stopped[process.pid] = time.monotonic() + self._pause
        for pid, when in list(self._stopped.items()):
            if time.monotonic() >= when:
                os.kill(pid, signal.SIGCONT)
                del self._stopped[pid]
                self.stops += 1

    def end(self) -> None:
        """Kill all of them."""
        for process in self._processes:
            process.kill()
            process.wait()

    def ledger(self) -> list[dict[str, Any]]:
        """Return what all have written, in the order of time."""
        entries = [
            msgspec.json.decode(line)
            for file in self._folder.glob("*.jsonl")
            for line in file.read_bytes().split(b"\n")
            if line
        ]
        return sorted(entries, key=lambda entry: entry["at"])

    def stderr(self) -> str:
        """Return what all have complained of."""
        return "".join(file.read_text() for file in self._folder.glob("*.stderr"))
