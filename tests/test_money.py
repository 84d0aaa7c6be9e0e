from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore import InvalidValue
from metastore.money import MAX_NANO, from_nano, to_nano, to_signed_nano


@pytest.mark.parametrize(
    ("amount", "nano"),
    [
        (0, 0),
        (3, 3_000_000_000),
        ("0.25", 250_000_000),
        (" 1.5 ", 1_500_000_000),
        (Decimal("0.000000001"), 1),
        (Decimal("-0"), 0),
        ("1.100000000000000000000000000000000000", 1_100_000_000),
        ("9223372036.854775807", MAX_NANO),
        (Decimal("1E+3"), 1_000_000_000_000),
    ],
)
def test_to_nano__is_exact(amount: Any, nano: int) -> None:
    assert to_nano(amount) == nano


@pytest.mark.parametrize(
    ("amount", "says"),
    [
        (0.1, "never a float"),
        (True, "never a float"),
        (None, "never a float"),
        ("a lot", "a number of dollars"),
        ("nan", "finite"),
        (Decimal("sNaN"), "finite"),
        (Decimal("-Infinity"), "finite"),
        (-1, "from 0"),
        ("-0.000000001", "from 0"),
        ("9223372036.854775808", "from 0"),
        (10**4000, "from 0"),
        (Decimal("1E+999999"), "from 0"),
        ("0.0000000001", "9 decimals"),
        (Decimal("1E-999999"), "9 decimals"),
    ],
)
def test_to_nano__refusals(amount: Any, says: str) -> None:
    with pytest.raises(InvalidValue, match=says) as refused:
        to_nano(amount, table="jobs", column="budget_usd")
    assert (refused.value.table, refused.value.column) == ("jobs", "budget_usd")
    assert refused.value.value_type == type(amount).__name__


@given(st.integers(min_value=0, max_value=MAX_NANO))
def test_from_nano__comes_back_under_any_context(nano: int) -> None:
    with decimal.localcontext() as context:
        context.prec = 3
        assert to_nano(from_nano(nano)) == nano


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (12_500_000_000, "12.50"),
        (-12_345_000_000, "-12.345"),
        (10**30 + 1, "1000000000000000000000.000000001"),
    ],
)
def test_from_nano__has_the_decimals_it_takes(nano: int, text: str) -> None:
    assert f"{from_nano(nano):f}" == text


def _hostile_contexts() -> list[decimal.Context]:
    every_trap = list(decimal.Context().traps)
    return [
        decimal.Context(prec=1),
        decimal.Context(prec=6, rounding=decimal.ROUND_DOWN),
        decimal.Context(prec=28, traps=every_trap),
        decimal.Context(prec=3, Emax=1, Emin=-1, traps=every_trap),
        decimal.Context(prec=3, traps=[]),
    ]


@pytest.mark.parametrize("context", _hostile_contexts())
def test_to_nano__whatever_the_context(context: decimal.Context) -> None:
    before = context.copy()
    with decimal.localcontext(context) as active:
        assert to_nano("9223372036.854775807") == MAX_NANO
        assert to_nano(Decimal("0.000000001")) == 1
        assert to_signed_nano("-0.123456789") == -123_456_789
        for amount in ("x", "nan", Decimal("sNaN"), "1e-10", "-1", "1e999999999", Decimal("1e-99")):
            with pytest.raises(InvalidValue):
                to_nano(amount)
        # Nothing is left behind in it either.
        assert active.flags == before.flags


def test_to_signed_nano__goes_as_far_down_as_up() -> None:
    assert to_signed_nano("-9223372036.854775807") == -MAX_NANO
    amounts: list[Any] = ["-9223372036.854775808", "9223372036.854775808", -0.5, "-1e-10"]
    for amount in amounts:
        with pytest.raises(InvalidValue):
            to_signed_nano(amount)
