"""What a run is made of: the actions of its clients and the faults between them."""

from __future__ import annotations

import random

import msgspec

from metastore.testing.simulation import Fault, FaultKind
from metastore.testing.simulation.faults import draw_faults

PROCESSES = 3
CLIENTS = 5
"""How many clients a process has; each does one thing at a time."""

ACTIONS = 12
"""How many actions a client takes."""

UNTIL = 1.5
"""Until when faults strike, in virtual seconds."""

WEIGHTS = {
    "append": 22, "append_many": 7, "plain_transaction": 3, "guarded": 9, "page": 6, "stranger": 1,
    "reserve": 9, "acquire": 8, "acquire_waiting": 5, "renew": 7, "release": 9, "forged": 3,
    "lease": 3, "failing_lease": 2, "troubled_lease": 3,
    "lock": 5, "lock_waiting": 4, "renew_lock": 3, "release_lock": 8, "guarded_by_lock": 3,
    "create_task": 7, "claim": 6, "claim_waiting": 3, "renew_claim": 3, "complete": 7,
    "release_claim": 3,
    "reserve_budget": 9, "record": 6, "release_budget": 2,
}  # fmt: skip


class Action(msgspec.Struct, frozen=True):
    """Something that a client does.

    Attributes:
        rest: how long the client rests before, in virtual seconds.
        n: chooses what it does it to, and how.
        cancelled_after: when it is cancelled, in virtual seconds after its beginning.
    """

    process: int
    client: int
    kind: str
    rest: float
    n: int
    cancelled_after: float | None = None

    def __str__(self) -> str:
        cancelled = (
            "" if self.cancelled_after is None else f", cancelled after {self.cancelled_after} s"
        )
        return f"p{self.process} client {self.client}: {self.kind} {self.n}{cancelled}"


class Plan(msgspec.Struct, frozen=True):
    """A run: everything in it follows from its seed, its actions and its faults."""

    seed: int
    steps: tuple[Action | Fault, ...]

    @property
    def actions(self) -> list[Action]:
        return [step for step in self.steps if isinstance(step, Action)]

    @property
    def faults(self) -> list[Fault]:
        return [step for step in self.steps if isinstance(step, Fault)]


def plan(seed: int) -> Plan:
    """Return the run of a seed."""
    chance = random.Random(f"{seed} plan")
    kinds = chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=PROCESSES * CLIENTS * ACTIONS)
    longest_rest = chance.choice((0.002, 0.01, 0.05))
    actions = [
        Action(
            process=place % PROCESSES,
            client=place // PROCESSES % CLIENTS,
            kind=kind,
            rest=round(chance.random() * longest_rest, 5),
            n=chance.randrange(1 << 16),
            cancelled_after=round(chance.random() ** 3 * 0.3, 5)
            if chance.random() < (0.5 if kind.endswith("_waiting") else 0.06)
            else None,
        )
        for place, kind in enumerate(kinds)
    ]
    return Plan(seed, (*_faults(chance), *actions))


def _faults(chance: random.Random) -> list[Fault]:
    # One kind most of the time, and two at once, where neither hides the other.
    kinds = chance.sample(list(FaultKind), k=chance.choice((0, 1, 2, 2, 3, len(FaultKind))))
    faults = draw_faults(
        chance,
        count=chance.randint(1, 6),
        until=UNTIL,
        processes=PROCESSES,
        busy_timeout=0.6,
        kinds=kinds,
    )
    for fault in list(faults):
        # What a clock that was wrong has left behind, nobody alive may correct.
        if fault.kind is FaultKind.CLOCK and chance.random() < 0.5:
            at = round(fault.at + chance.random() * 0.3, 4)
            faults.append(Fault(at, FaultKind.KILL, fault.process))
    return faults
