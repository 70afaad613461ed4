"""What calls cost and what their hits spare, in tokens and money, by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from codomyrmex_cache._record import record

__all__ = ["NO_MODELS", "Ledger", "ModelStats", "Worth", "amounts_of", "merged", "models_of"]

Price = Callable[[str, int, int, int, int], float | None]
"""Model, tokens of input and of output, and cached and written ones of the input to dollars, `None` if they are unknown."""

_MOST_WORTHS, _MOST_MODELS = 1_024, 256
"""Kept apart by one ledger; of the worths beyond, the sums; of the models beyond, those of all together."""

OTHERS = "others"

_MODEL = "model:"


class Worth(NamedTuple):
    """What the load of one result took.

    Args:
        model: as the provider names it, "" if the result does not say.
        input, output: tokens.
        cached, written: of the input, tokens that the provider had in its cache of prompts, and that it has put there.
        cost: dollars, `None` if they are unknown, or who is to be asked once somebody wants to know.
    """

    model: str = ""
    input: int = 0
    output: int = 0
    cached: int = 0
    written: int = 0
    cost: float | Price | None = None

    def dollars(self) -> float | None:
        """The price, `None` if it is unknown."""
        return self.cost(*self[:-1]) if callable(self.cost) else self.cost


@record(frozen=True, slots=True)
class ModelStats:
    """What calls answered by one model cost and saved; the calls are those whose results tell of tokens or money.

    Money is in dollars.  `unpriced` are those of the hits, `unpriced_loads` those of the loads, whose price is unknown: they
    are in no sum of money.

    >>> ModelStats(hits=3, loads=1, input_tokens_saved=24, output_tokens_saved=12).tokens_saved
    36
    """

    hits: int = 0
    loads: int = 0
    seconds_saved: float = 0.0
    input_tokens_saved: int = 0
    output_tokens_saved: int = 0
    cost_saved: float = 0.0
    unpriced: int = 0
    input_tokens_spent: int = 0
    output_tokens_spent: int = 0
    cost_spent: float = 0.0
    unpriced_loads: int = 0

    @property
    def tokens_saved(self) -> int:
        """Of input and output together."""
        return self.input_tokens_saved + self.output_tokens_saved

    @property
    def tokens_spent(self) -> int:
        """Of input and output together."""
        return self.input_tokens_spent + self.output_tokens_spent

    @classmethod
    def merge(cls, parts: Iterable[ModelStats]) -> ModelStats:
        """The sum."""
        parts = list(parts)
        return cls(*[sum(getattr(part, name) for part in parts) for name in FIELDS])


FIELDS = tuple(ModelStats.__annotations__)

NO_MODELS: Mapping[str, ModelStats] = MappingProxyType({})


def merged(parts: Iterable[Mapping[str, ModelStats]]) -> Mapping[str, ModelStats]:
    """The sums by model."""
    found: dict[str, list[ModelStats]] = {}
    for part in parts:
        for model, stats in part.items():
            found.setdefault(model, []).append(stats)
    return MappingProxyType({model: ModelStats.merge(stats) for model, stats in sorted(found.items())}) if found else NO_MODELS


def amounts_of(models: Mapping[str, ModelStats]) -> dict[str, float]:
    """The numbers by names that can be summed apart from each other."""
    return {f"{_MODEL}{name}:{model}": getattr(stats, name) for model, stats in models.items() for name in FIELDS}


def models_of(amounts: Mapping[str, float]) -> Mapping[str, ModelStats]:
    """From such numbers, among others; names that mean nothing here are left out."""
    found: dict[str, dict[str, Any]] = {}
    for told, amount in amounts.items():
        name, _, model = told.removeprefix(_MODEL).partition(":")
        if told.startswith(_MODEL) and name in FIELDS:
            is_float = name.startswith("cost") or "seconds" in name
            found.setdefault(model, {})[name] = float(amount) if is_float else round(amount)
    return MappingProxyType({model: ModelStats(**told) for model, told in sorted(found.items())}) if found else NO_MODELS


class Ledger:
    """How often each worth was spared and spent; who writes holds the lock of the counters.

    Prices are asked for when somebody reads: the list of them takes a quarter of a second to import, which is nothing for a hit
    to wait for.  Answers of as many tokens share one line; when there are too many lines the next are priced at once.
    """

    def __init__(self, other: Ledger | None = None) -> None:
        self._lines: dict[Worth, list[float]] = {} if other is None else {key: [*line] for key, line in other._lines.items()}
        self._sums: dict[str, Counter[str]] = {} if other is None else {key: Counter(sums) for key, sums in other._sums.items()}

    def add(self, worth: Worth, hits: int = 0, seconds: float = 0.0, loads: int = 0) -> None:
        """So many hits spared it, and with it these seconds; so many loads spent it."""
        line = self._lines.get(worth)
        if line is None and len(self._lines) >= _MOST_WORTHS:
            _enter(self._sums, worth, hits, seconds, loads)
            return
        line = self._lines.setdefault(worth, [0, 0.0, 0])
        line[0] += hits
        line[1] += seconds
        line[2] += loads

    def models(self) -> Mapping[str, ModelStats]:
        """The sums by model; asks for prices, so not under a lock."""
        if not self._lines and not self._sums:
            return NO_MODELS
        sums = {model: Counter(found) for model, found in self._sums.items()}
        for worth, (hits, seconds, loads) in self._lines.items():
            if hits or loads:
                _enter(sums, worth, int(hits), seconds, int(loads))
        return MappingProxyType({model: ModelStats(**found) for model, found in sorted(sums.items())})


def _enter(sums: dict[str, Counter[str]], worth: Worth, hits: int, seconds: float, loads: int) -> None:
    dollars = worth.dollars()
    unknown = dollars is None
    account = sums.setdefault(worth.model if worth.model in sums or len(sums) < _MOST_MODELS else OTHERS, Counter())
    amounts: dict[str, float] = {
        "hits": hits,
        "loads": loads,
        "seconds_saved": seconds,
        "input_tokens_saved": hits * worth.input,
        "output_tokens_saved": hits * worth.output,
        "cost_saved": hits * (dollars or 0.0),
        "unpriced": hits * unknown,
        "input_tokens_spent": loads * worth.input,
        "output_tokens_spent": loads * worth.output,
        "cost_spent": loads * (dollars or 0.0),
        "unpriced_loads": loads * unknown,
    }
    account.update(amounts)
