"""Prices model calls for callers who do not know the cost: the extra `prices`.

The price list is part of the package `genai-prices`, so there is no network access.
"""

from __future__ import annotations

from datetime import UTC
from decimal import ROUND_CEILING, Context, localcontext
from typing import TYPE_CHECKING, NamedTuple

from metastore.errors import PriceUnknown

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Price", "price"]

# More digits than any price times any number of tokens, and independent of the caller's context,
# which could round or raise inside the price list's own arithmetic.
_EXACT = Context(prec=60, rounding=ROUND_CEILING, traps=[])


class Price(NamedTuple):
    """The price of a call.

    Attributes:
        nano_usd: the cost, rounded up to a whole nano-dollar.
        priced_by: the price list and its version, plus its date if the process has fetched a newer
            one.
    """

    nano_usd: int
    priced_by: str


def price(
    provider: str,
    model: str,
    *,
    tokens_in: int,
    tokens_out: int,
    tokens_cached: int,
    tokens_cache_write: int = 0,
    tokens_reasoning: int = 0,
    at: datetime,
) -> Price:
    """Return the price of a call of `model` at `provider`, by the prices on the day `at`.

    Raises:
        PriceUnknown: the extra `prices` is not installed, or the list lacks the provider, the model
            or the price of its tokens.
    """
    try:
        import genai_prices
    except ImportError:
        raise PriceUnknown(provider, model, "pass cost_usd, or install metastore[prices]") from None
    # In genai-prices, the input includes cached tokens, and the output includes reasoning.
    tokens_read = tokens_in + tokens_cached + tokens_cache_write
    tokens_written = tokens_out + tokens_reasoning
    with localcontext(_EXACT):
        usage = genai_prices.Usage(
            input_tokens=tokens_read,
            output_tokens=tokens_written,
            cache_read_tokens=tokens_cached,
            cache_write_tokens=tokens_cache_write,
            output_reasoning_tokens=tokens_reasoning,
        )
        try:
            found = genai_prices.calc_price(
                usage, model, provider_id=provider, genai_request_timestamp=at
            )
        except LookupError as error:
            raise PriceUnknown(provider, model, str(error)) from error
        # Models sold by the image or the hour have no token price, which must not mean free.
        if (tokens_read and not found.input_price) or (tokens_written and not found.output_price):
            raise PriceUnknown(provider, model, "the price list has no price for its tokens")
        nano = int((found.total_price * 1_000_000_000).to_integral_value())
    priced_by = f"genai-prices {genai_prices.__version__}"
    # The version identifies the packaged list; a list fetched later has a date.
    if found.auto_update_timestamp is not None:
        priced_by += f" of {found.auto_update_timestamp.astimezone(UTC):%Y-%m-%d}"
    return Price(nano, priced_by)
