"""Deterministic simulation: several processes on one database, interleaved by a seed."""

from metastore.testing.simulation.faults import Fault, FaultKind
from metastore.testing.simulation.process import Process
from metastore.testing.simulation.simulate import SimulationFailed, simulate

__all__ = ["Fault", "FaultKind", "Process", "SimulationFailed", "simulate"]
