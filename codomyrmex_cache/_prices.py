"""Dollars for tokens, by the list of prices that the optional package genai-prices brings along; nothing is fetched."""

from __future__ import annotations

from functools import lru_cache

from codomyrmex_cache._log import Log

__all__ = ["price_of"]

logger = Log(__name__)


@lru_cache(maxsize=4_096)  # one takes 80 us, and as many answers have the same numbers of tokens
def price_of(model: str, input_tokens: int, output_tokens: int, cached: int = 0, written: int = 0) -> float | None:
    """What the provider of this model asks for so many tokens, `None` if the list or the model is not known.

    Prices are the list's at the time of the first question, for requests of the usual kind: not batched, not of a priority.
    `cached` and `written` are those of the input that the provider had in its cache of prompts, and that it has put there.
    """
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return None
    try:
        usage = Usage(
            input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cached, cache_write_tokens=written
        )
        found = calc_price(usage, model_ref=model)
        return float(found.total_price)
    except LookupError:
        return None
    except Exception as error:  # another release of the list, say: no reason for statistics to fail
        logger.warning("genai-prices has no price for %r: %r", model, error)
        return None
