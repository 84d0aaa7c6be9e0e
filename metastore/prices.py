"""What a model call costs, where the caller does not know: the extra `prices`.

The price list is part of the package `genai-prices`, so nothing is asked over the network.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING, NamedTuple

from metastore.errors import PriceUnknown

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Price", "price"]

_ROUNDED_UP = Context(prec=60, rounding=ROUND_CEILING)


class Price(NamedTuple):
    """What a call costs.

    Attributes:
        nano_usd: the cost, rounded up to a whole nano-dollar.
        priced_by: the price list that says so, with its version.
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
    at: datetime,
) -> Price:
    """Return what a call of `model` at `provider` costs by the prices of the day `at`.

    Raises:
        PriceUnknown: the extra `prices` is not installed, or the list does not have the provider
            or the model, or no price of its tokens.
    """
    try:
        import genai_prices
    except ImportError:
        raise PriceUnknown(provider, model, "pass cost_usd, or install metastore[prices]") from None
    # There, cached tokens are a part of the input.
    usage = genai_prices.Usage(
        input_tokens=tokens_in + tokens_cached,
        output_tokens=tokens_out,
        cache_read_tokens=tokens_cached,
    )
    try:
        found = genai_prices.calc_price(
            usage, model, provider_id=provider, genai_request_timestamp=at
        )
    except LookupError as error:
        raise PriceUnknown(provider, model, str(error)) from error
    # What is sold by the image or the hour has no price of tokens, which would make them free.
    if (tokens_in + tokens_cached and not found.input_price) or (
        tokens_out and not found.output_price
    ):
        raise PriceUnknown(provider, model, "the price list has no price of its tokens")
    nano = (found.total_price * Decimal(1_000_000_000)).to_integral_value(context=_ROUNDED_UP)
    return Price(int(nano), f"genai-prices {genai_prices.__version__}")
