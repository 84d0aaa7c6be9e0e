"""Money: whole nano-dollars inside, `Decimal` dollars outside, and never a float.

A nano-dollar is a billionth of a dollar, a thousandth of what the cheapest models charge per token.
Nothing is rounded: an amount that is not a whole number of nano-dollars is refused.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext

from metastore.codec import RefusedError
from metastore.errors import InvalidValue

__all__ = ["MAX_NANO", "Amount", "from_nano", "to_nano", "to_signed_nano"]

Amount = Decimal | int | str
"""An amount of dollars: 3, `"0.25"` or `Decimal("0.000000125")`."""

MAX_NANO = (1 << 63) - 1
"""The largest amount, nine billion dollars, in nano-dollars."""

_RANGE = "must be from {} to 9223372036.854775807 dollars"
_NANO = Decimal("1e-9")
# Nine decimals and more integer digits than MAX_NANO has; a loss of precision is an error.
_EXACT = Context(prec=30, traps=[Inexact, InvalidOperation])


def to_nano(amount: Amount, *, table: str | None = None, column: str = "amount_usd") -> int:
    """Return `amount` dollars in nano-dollars, exactly.

    Raises:
        InvalidValue: it is a float, not a number, negative, too large, or has more than nine
            decimals; names `table` and `column`.
    """
    return _checked(amount, 0, table, column)


def to_signed_nano(amount: Amount, *, table: str | None = None, column: str = "amount_usd") -> int:
    """Return `amount` dollars, which may be negative, in nano-dollars, exactly.

    Raises:
        InvalidValue: as for `to_nano`, but for a negative amount.
    """
    return _checked(amount, -MAX_NANO, table, column)


def _checked(amount: Amount, lowest: int, table: str | None, column: str) -> int:
    # Isolated from the caller's decimal context, whose traps would otherwise escape, from
    # comparisons and conversions too.
    try:
        with localcontext(_EXACT):
            return _to_nano(amount, lowest)
    except RefusedError as refused:
        raise InvalidValue(table, column, str(refused), value_type=type(amount).__name__) from None


def _to_nano(amount: Amount, lowest: int) -> int:
    if isinstance(amount, bool) or not isinstance(amount, Decimal | int | str):
        raise RefusedError("must be dollars as a Decimal, an int or a str, never a float")
    try:
        dollars = Decimal(amount)
    except InvalidOperation:
        raise RefusedError("must be a number of dollars") from None
    if not dollars.is_finite():
        raise RefusedError("must be a finite number of dollars")
    out_of_range = _RANGE.format("-9223372036.854775807" if lowest else 0)
    try:
        nano = int(dollars.quantize(_NANO).scaleb(9))
    except Inexact:
        raise RefusedError("must have at most 9 decimals") from None
    except InvalidOperation:
        raise RefusedError(out_of_range) from None
    if not lowest <= nano <= MAX_NANO:
        raise RefusedError(out_of_range)
    return nano


def from_nano(nano: int) -> Decimal:
    """Return nano-dollars as dollars, exactly, with at least two decimals."""
    decimals = 9
    while decimals > 2 and nano % 10 == 0:
        nano //= 10
        decimals -= 1
    # Assembled rather than divided, so that the caller's decimal context cannot round.
    digits = tuple(map(int, str(abs(nano))))
    return Decimal((int(nano < 0), digits, -decimals))
