"""The testing kit: stores, a clock, factories and faults for tests of programs that use metastore.

One line in the `conftest.py` beside a project's pytest configuration enables its fixtures:

    pytest_plugins = ["metastore.testing"]

They need `pytest` and `pytest-asyncio`; importing from here needs neither.

PYTEST_DONT_REWRITE: a conftest.py may import from here before pytest loads the plugin.
"""

from metastore.testing.clock import Clock
from metastore.testing.expiry import expire
from metastore.testing.factories import Factories
from metastore.testing.faults import Faults
from metastore.testing.simulation import (
    Fault,
    FaultKind,
    Process,
    SimulationFailed,
    simulate,
)

__all__ = [
    "Clock",
    "Factories",
    "Fault",
    "FaultKind",
    "Faults",
    "Process",
    "SimulationFailed",
    "expire",
    "simulate",
]

pytest_plugins = ["metastore.testing.plugin"]
