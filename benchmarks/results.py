"""What a run leaves behind: figures as JSON, which the tables and plots are made from."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks import contenders, database
from benchmarks.worker import Sample  # noqa: TC001 - read from JSON by annotation

if TYPE_CHECKING:
    from benchmarks.noise import Patience

__all__ = [
    "GrowthFigure",
    "Machine",
    "Noise",
    "OperationFigure",
    "ProcessFigure",
    "Results",
    "describe_machine",
    "load",
    "merge",
    "save",
]

PACKAGES = ("aiosqlite", "sqlalchemy", "sqlmodel", "tortoise-orm", "piccolo", "peewee")


class Machine(msgspec.Struct, frozen=True):
    """Where it ran."""

    python: str
    sqlite: str
    cpus: int
    processor: str
    sync_us: float
    packages: dict[str, str]


class Noise(msgspec.Struct, frozen=True):
    """What else the machine did: how many cores others used during the windows.

    Attributes:
        repeated: how many windows were thrown away for it.
    """

    windows: int
    median: float
    worst: float
    repeated: int

    @classmethod
    def of(cls, patience: Patience) -> Noise:
        """Return what was noted while windows were measured."""
        found = patience.disturbances or [0.0]
        return cls(len(found), statistics.median(found), max(found), patience.repeated)


class OperationFigure(msgspec.Struct, frozen=True):
    """A contender at an operation with so many tasks: a sample for each round."""

    operation: str
    tasks: int
    contender: str
    rounds: list[Sample]

    @property
    def rate(self) -> float:
        """The median of the rounds' operations a second."""
        return statistics.median(it.rate for it in self.rounds)

    @property
    def p50(self) -> float:
        """The median of the rounds' median times, in microseconds."""
        return statistics.median(it.p50 for it in self.rounds)

    @property
    def p99(self) -> float:
        """The median of the rounds' 99th percentiles, in microseconds."""
        return statistics.median(it.p99 for it in self.rounds)


class ProcessFigure(msgspec.Struct, frozen=True):
    """So many processes appending to one database: for each round, a sample for each process."""

    processes: int
    tasks: int
    rounds: list[list[Sample]]

    @property
    def rates(self) -> list[float]:
        """Operations a second of all processes together, for each round."""
        return [
            sum(it.operations for it in samples) / max(it.seconds for it in samples)
            for samples in self.rounds
        ]

    @property
    def fairness(self) -> float:
        """The slowest process's operations in parts of the fastest's: the median of the rounds."""
        return statistics.median(
            min(it.operations for it in samples) / max(it.operations for it in samples)
            for samples in self.rounds
        )

    @property
    def p99s(self) -> list[float]:
        """The worst process's 99th percentile, in microseconds, for each round."""
        return [max(it.p99 for it in samples) for samples in self.rounds]

    @property
    def worst(self) -> float:
        """The longest that any operation took, in microseconds."""
        return max(it.worst for samples in self.rounds for it in samples)

    @property
    def errors(self) -> int:
        """How many operations failed."""
        return sum(sum(it.errors.values()) for samples in self.rounds for it in samples)


class GrowthFigure(msgspec.Struct, frozen=True):
    """The same operation on a small table and on a big one: a median for each round.

    Attributes:
        what: which operation, and from where.
        small: how many rows the small table has; `big` likewise.
        small_us: microseconds on the small table; `big_us` likewise.
    """

    what: str
    small: int
    big: int
    small_us: list[float]
    big_us: list[float]

    @property
    def ratio(self) -> float:
        """How many times as long it takes on the big one: the median of the rounds."""
        return statistics.median(
            big / small for small, big in zip(self.small_us, self.big_us, strict=True)
        )


class Results(msgspec.Struct, frozen=True):
    """Everything that a run measured."""

    at: datetime
    quick: bool
    rounds: int
    seconds: float
    machine: Machine
    noise: Noise
    operations: list[OperationFigure]
    processes: list[ProcessFigure]
    growth: list[GrowthFigure]

    def best(self, peer: str, operation: str, tasks: int) -> OperationFigure | None:
        """Return the figure of a peer's better setting; None if it was not measured."""
        figures = [
            it
            for it in self.operations
            if it.operation == operation
            and it.tasks == tasks
            and contenders.ALL[it.contender].peer == peer
        ]
        return max(figures, key=lambda it: it.rate, default=None)


def describe_machine() -> Machine:
    """Return what it runs on."""
    return Machine(
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        cpus=len(os.sched_getaffinity(0)),
        processor=_processor(),
        sync_us=_sync_time(),
        packages={name: version(name) for name in PACKAGES},
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _sync_time() -> float:
    """Return how long the disk takes to keep 4 KiB, in microseconds."""
    path = database.scratch("sync.tmp")
    times = []
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for number in range(200):
            os.pwrite(descriptor, b"x" * 4096, number % 50 * 4096)
            begun = datetime.now(UTC)
            os.fdatasync(descriptor)
            times.append((datetime.now(UTC) - begun).total_seconds() * 1e6)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(times)


def save(results: Results) -> Path:
    """Write the results and return where they are."""
    database.DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = database.DIRECTORY / f"results-{results.at:%Y%m%dT%H%M%SZ}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    return path


def load(path: Path) -> Results:
    """Read results."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def merge(several: list[Results]) -> Results:
    """Return the newest figures of each part."""
    ordered = sorted(several, key=lambda it: it.at)
    merged = ordered[-1]
    for part in ("operations", "processes", "growth"):
        for it in ordered:
            if getattr(it, part):
                merged = msgspec.structs.replace(merged, **{part: getattr(it, part)})
    return merged
