"""The faults that `make mutants` plants: their places, their tests, and what counts as caught."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import mutants
from tests.mutants import MUTANTS, ROOT, Copy, Mutant

if TYPE_CHECKING:
    from pathlib import Path

GENERATED = {"tests/test_docs.py", "tests/test_statements.py"}
"""What compares with a golden or generated file, which `make format` rewrites with the fault."""

PASSES = "from subject import VALUE\n\ndef test_it() -> None:\n    assert VALUE == 1\n"


def test_mutants__are_a_hundred_and_more_of_different_faults() -> None:
    assert len({mutant.fault for mutant in MUTANTS}) == len(MUTANTS) >= 100


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_mutant__has_its_place_and_tests_of_behaviour(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert mutant.planted(text) not in (None, text)
    for file in mutant.tests.split():
        assert (ROOT / file).is_file(), file
        assert file not in GENERATED


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """A copy of a project of one module and one test."""
    monkeypatch.setattr(mutants, "ROOT", tmp_path / "original")
    monkeypatch.setattr(mutants, "COPIED", ("subject.py", "test_subject.py"))
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "subject.py").write_text("VALUE = 1\nOTHER = 1\n")
    (tmp_path / "original" / "test_subject.py").write_text(PASSES)
    return Copy(tmp_path / "copy")


def test_run__says_what_became_of_each_and_takes_it_back(copy: Copy) -> None:
    def mutant(old: str, new: str, after: str = "") -> Mutant:
        return Mutant("f", "subject.py", old, new, "test_subject.py", after=after)

    assert copy.run(mutant("= 1", "= 2")) == "caught"
    assert copy.run(mutant("= 1", "= 2", after="OTHER")) == "SURVIVED"
    assert copy.run(mutant("VALUE = 1", "VALUE = = 1")).startswith("broke the tests")
    assert copy.run(mutant("= 3", "= 2")) == "its place is gone"
    assert copy.run(mutant("= 1", "= 2", after="what nobody wrote")) == "its place is gone"
    assert copy.test(["test_subject.py"])[0] == 0


def test_main__counts_nothing_while_the_tests_fail_without_a_mutant(
    copy: Copy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del copy
    (mutants.ROOT / "test_subject.py").write_text(PASSES.replace("== 1", "== 5"))
    monkeypatch.setattr(
        mutants, "MUTANTS", [Mutant("f", "subject.py", "= 1", "= 2", "test_subject.py")]
    )
    assert mutants.main() == 1
    printed = capsys.readouterr().out
    assert "fail without any mutant" in printed
    assert "caught" not in printed.replace("whatever they catch", "")
