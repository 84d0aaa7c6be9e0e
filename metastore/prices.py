"""What a model call costs, where the caller does not know: the extra `prices`.

The price list is part of the package `genai-prices`, so nothing is asked over the network.
"""

from __future__ import annotations

from datetime import UTC
from decimal import ROUND_CEILING, Context, localcontext
from typing import TYPE_CHECKING, NamedTuple

from metastore.errors import PriceUnknown

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Price", "price"]

# More digits than any price times any number of tokens has, and nothing of the caller's context,
# which would round, or raise, in the middle of the price list's own arithmetic.
_EXACT = Context(prec=60, rounding=ROUND_CEILING, traps=[])


class Price(NamedTuple):
    """What a call costs.

    Attributes:
        nano_usd: the cost, rounded up to a whole nano-dollar.
        priced_by: the price list that says so, with its version; and with the date if the process
            has since replaced it with a newer one.
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
    """Return what a call of `model` at `provider` costs by the prices of the day `at`.

    Raises:
        PriceUnknown: the extra `prices` is not installed, or the list does not have the provider
            or the model, or no price of its tokens.
    """
    try:
        import genai_prices
    except ImportError:
        raise PriceUnknown(provider, model, "pass cost_usd, or install metastore[prices]") from None
    # There, cached tokens are a part of the input, and reasoning is a part of the output.
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
        # What is sold by the image or the hour has no price of tokens, which would make them free.
        if (tokens_read and not found.input_price) or (tokens_written and not found.output_price):
            raise PriceUnknown(provider, model, "the price list has no price of its tokens")
        nano = int((found.total_price * 1_000_000_000).to_integral_value())
    priced_by = f"genai-prices {genai_prices.__version__}"
    # The list in the package is what its version says; one that was fetched since has a date.
    if found.auto_update_timestamp is not None:
        priced_by += f" of {found.auto_update_timestamp.astimezone(UTC):%Y-%m-%d}"
    return Price(nano, priced_by)
