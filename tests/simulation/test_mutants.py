"""The search for planted faults: it must not take its own mistakes for findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.simulation import mutants
from tests.simulation.judge import Violation
from tests.simulation.mutants import FOUND, HOLDS, MUTANTS, ROOT, UNCHANGED, Mutant
from tests.simulation.run import is_finding

if TYPE_CHECKING:
    from pathlib import Path


def caused(by: BaseException) -> AssertionError:
    error = AssertionError("p0.1: the program raised something")
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Violation("stored twice"), True),
        (AssertionError("the run hangs: p1.2"), True),
        (caused(ValueError("x")), True),
        (caused(ExceptionGroup("", [ValueError("x"), Violation("x")])), True),
        (AttributeError("x"), False),
        (KeyError("an event that nobody appended"), False),
        (caused(AttributeError("x")), False),
        (caused(ExceptionGroup("", [ValueError("x"), ImportError("x")])), False),
        (caused(caused(NameError("x"))), False),
    ],
    ids=repr,
)
def test_is_finding__tells_the_store_from_the_simulation(
    failure: Exception, expected: bool
) -> None:
    assert is_finding(failure) is expected


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_mutants__their_places_are_there(mutant: Mutant) -> None:
    for name, old, new in mutant.edits:
        assert old != new
        assert old in (ROOT / name).read_text(), name


HELD = "metastore/leasing/holding.py"
JUDGE = "tests/simulation/judge.py"
ANSWERED = "    def answered(self, operation: Operation) -> None:\n"


@pytest.mark.parametrize(
    ("mutant", "expected"),
    [
        (UNCHANGED, HOLDS),
        (Mutant("syntax", [(JUDGE, ANSWERED, "    def answered(:\n")]), "the simulation broke"),
        (
            Mutant("name", [(JUDGE, ANSWERED, f"{ANSWERED}        self.missing()\n")]),
            "the simulation broke",
        ),
        (
            Mutant("judge", [(JUDGE, ANSWERED, f"{ANSWERED}        raise Violation('always')\n")]),
            FOUND,
        ),
        (Mutant("gone", [(HELD, "what nobody has ever written", "")]), "its place"),
    ],
    ids=lambda it: it.fault if isinstance(it, Mutant) else "",
)
def test_run__tells_what_became_of_a_copy(
    mutant: Mutant, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = mutants.SEARCH.replace(f"range({mutants.SEEDS})", "range(1)")
    monkeypatch.setattr(mutants, "SEARCH", search)
    assert mutants.run(mutant, tmp_path).startswith(expected)
