"""Errors travel: between tasks, as copies, and between processes, pickled."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from metastore import errors

if TYPE_CHECKING:
    from metastore.errors import MetastoreError

KINDS = [getattr(errors, name) for name in errors.__all__]


def made(kind: type[MetastoreError]) -> MetastoreError:
    """Make an error of a kind, with something for each of its parameters."""
    parameters = inspect.signature(kind.__init__).parameters
    if "self" not in parameters or kind.__init__ is Exception.__init__:
        return kind("what happened")
    values: dict[str, Any] = {}
    for name, parameter in list(parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return kind("what happened")
        values[name] = _value(name)
    return kind(**values)


def _value(name: str) -> Any:
    if name in ("row", "worktree", "lock", "job", "parent"):
        return SimpleNamespace(
            id="i", session_id="s", owner="o", status="running",
            lease_owner="o", lease_expires_at=datetime(2026, 1, 1, tzinfo=UTC),
            expires_at=datetime(2026, 1, 1, tzinfo=UTC), state="ready", path="/p",
        )  # fmt: skip
    if name == "columns":
        return ("a", "b")
    if name.startswith("is_"):
        return True
    return name


def same(one: MetastoreError, other: MetastoreError) -> None:
    assert type(other) is type(one)
    assert other is not one
    assert str(other) == str(one)
    assert vars(other).keys() == vars(one).keys()
    assert {k: v for k, v in vars(other).items() if isinstance(v, str | bool)} == {
        k: v for k, v in vars(one).items() if isinstance(v, str | bool)
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors__are_copied_and_pickled_with_their_facts(kind: type[MetastoreError]) -> None:
    error = made(kind)
    same(error, copy.copy(error))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        same(error, pickle.loads(pickle.dumps(error, protocol)))


def _raise(name: str) -> None:
    raise made(getattr(errors, name))


def test_errors__of_a_worker_process_reach_the_caller_and_leave_the_pool_whole() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for kind in (errors.NotFound, errors.LeaseUnavailable, errors.StoreReplaced):
            with pytest.raises(kind):
                pool.submit(_raise, kind.__name__).result(60)
