"""What else the machine does while it is measured.

An operation here goes from thread to thread and waits for the disk: another program on the same
cores can make it ten times as slow. So every window says how busy others were, and with patience
one that was disturbed is measured again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DISTURBED", "Patience"]

DISTURBED = 0.15
"""How many cores others may use before a window counts as disturbed."""

PAUSE = 2.0
"""How long to wait before a disturbed window is measured again, in seconds."""

STAT = Path("/proc/stat")

Measured = TypeVar("Measured")


class Patience:
    """Measures windows, and disturbed ones again as long as there is patience left.

    Attributes:
        disturbances: how many cores others used during each window that was kept.
        repeated: how many windows were not kept.
    """

    def __init__(self, seconds: float) -> None:
        self.disturbances: list[float] = []
        self.repeated = 0
        self._left = seconds

    def measure(
        self, window: Callable[[], Measured], cpu_seconds: Callable[[Measured], float]
    ) -> Measured:
        """Return what `window` measures; `cpu_seconds` tells how much of the cores was its own."""
        while True:
            begun, busy = time.monotonic(), _busy_seconds() - time.process_time()
            measured = window()
            elapsed = time.monotonic() - begun
            others = _busy_seconds() - time.process_time() - busy - cpu_seconds(measured)
            disturbance = max(0.0, others / elapsed)
            if disturbance <= DISTURBED or self._left <= 0:
                self.disturbances.append(disturbance)
                return measured
            self.repeated += 1
            self._left -= elapsed + PAUSE
            time.sleep(PAUSE)


def _busy_seconds() -> float:
    """Return how long the cores have been busy since the start of the machine; 0 if unknown."""
    if not STAT.exists():
        return 0.0
    fields = STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
