"""A call for many items: hits from the store, one run of the function for the items that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from codomyrmex_cache._effects import Answer, Ask, Call, Flow, KeyMoved, Lead, Load, Now, Patience, Request, Wait
from codomyrmex_cache._entries import answered, examine
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._flight import TIMED_OUT, Abandoned, Failed, Flight, Phase, TimedOut
from codomyrmex_cache._flow import call, compute, follower_answer, leader_answer, waited_in_vain
from codomyrmex_cache._load import Terms, elected_for, fields_of, landed, lead, missed, release, seconds_of, unchanged
from codomyrmex_cache._policy import Verdict
from codomyrmex_cache._space import Space
from codomyrmex_cache.errors import CacheError

__all__ = ["Items", "call_many"]


class Items(NamedTuple):
    """The distinct items of one call.

    Args:
        requests: one for each.
        invoke: runs the function for the items at these places.
        limit: how many it is given at most.
    """

    requests: Sequence[Request]
    invoke: Callable[[Sequence[int]], Any]
    limit: int | None


class Led(NamedTuple):
    """An item whose load is this call's."""

    place: int
    request: Request
    flight: Flight
    terms: Terms


def call_many(space: Space, items: Items) -> Flow[list[Answer]]:
    """The answer for each item.  Items that another caller is loading are waited for, after this call's own load."""
    answers = yield from _stored_answers(space, items.requests)
    missing = [place for place in range(len(items.requests)) if place not in answers]
    if missing and items.requests[missing[0]].ruling.mode == "replay":
        for place in missing:
            items.requests[place].counters.add("misses")
        raise (yield from missed(space, items.requests[missing[0]]))
    carrier = Flight(b"")
    joined = {}
    for place in missing:
        own = Flight(space.stored(items.requests[place].key.text), carrier)
        flight = space.flights.join(own)
        joined[place] = (own, flight, flight.phase)
    led = {place: own for place, (own, flight, _) in joined.items() if flight is own}
    try:
        if led:
            answers.update((yield from _led_answers(space, items, carrier, led)))
    except BaseException:
        _leave(flight for own, flight, _ in joined.values() if flight is not own)
        raise
    for place in missing:
        own, flight, phase = joined[place]
        if flight is not own:
            answers[place] = yield from _followed_answer(space, items.requests[place], flight, phase)
    return [answers[place] for place in range(len(items.requests))]


def _stored_answers(space: Space, requests: Sequence[Request]) -> Flow[dict[int, Answer]]:
    stored = [space.stored(request.key.text) for request in requests]
    raws: Mapping[bytes, Entry] = {}
    try:
        if hasattr(space.backend, "get_many"):
            raws = yield Call("get_many", (stored,))
        else:
            raws = {}
            for key in stored:
                raws[key] = yield Call("get", (key,))
    except Exception as error:
        if requests:
            space.backend_failed("get", error, requests[0].counters)
    answers = {}
    for place, request in enumerate(requests):
        raw = raws.get(stored[place])
        found = (
            None
            if raw is None
            else (
                yield from examine(
                    space, request.key, raw, request.counters, copy=request.rules.copy, strict=request.rules.strict
                )
            )
        )
        ruling = request.ruling
        if found is not None and ruling.counts(found.entry.created) and (found.verdict is Verdict.FRESH or not ruling.ages):
            answer = answered(space, request, found.entry)
            if answer is not None:
                request.counters.hit(found.entry.cost, found.entry.result)
                answers[place] = answer
    return answers


def _led_answers(space: Space, items: Items, carrier: Flight, led: dict[int, Flight]) -> Flow[dict[int, Answer]]:
    carrier.enter()
    try:
        yield Lead(carrier, _lead_many(space, items, carrier, led), tuple(led.values()))
        yield Wait(carrier, Patience(None))
    except BaseException as error:
        if carrier.task is None:  # no task of its own goes on with it
            _end_all(space, led.values(), error)
        for place in led:
            items.requests[place].counters.add("misses")
        raise
    finally:
        _leave([*led.values(), carrier])
    answers = {}
    for place, flight in led.items():
        request, outcome = items.requests[place], flight.future.result()
        if isinstance(outcome, Abandoned) and isinstance(outcome.error, KeyMoved):
            answers[place] = yield from compute(request)
        elif outcome == Abandoned(TIMED_OUT):  # another process went on loading it
            answers[place] = yield from waited_in_vain(space, request, None)
        else:
            answers[place] = leader_answer(space, request, outcome)
    return answers


def _leave(flights: Any) -> None:
    for flight in flights:
        flight.leave()


def _end_all(space: Space, flights: Any, error: BaseException) -> None:
    for flight in flights:
        space.flights.end(flight, Abandoned(error))


def _lead_many(space: Space, items: Items, carrier: Flight, led: dict[int, Flight]) -> Flow[None]:
    reason: BaseException = GeneratorExit()
    try:
        granted, busy = yield from _granted(space, items, led)
        for part in _parted(granted, items.limit):
            yield from _load_part(space, items, part)
        for place in busy:  # another process loads it; if that comes to nothing, it is this call's again
            request = items.requests[place]
            yield from lead(space, request, led[place], Patience(request.rules.wait))
    except BaseException as error:
        reason = error
        raise
    finally:
        _end_all(space, led.values(), reason)  # those that have not ended
        space.flights.end(carrier, Abandoned(reason))


def _granted(space: Space, items: Items, led: dict[int, Flight]) -> Flow[tuple[list[Led], list[int]]]:
    """The items to be loaded here and now, and the places of those that another process is loading."""
    granted, busy = [], []
    for place, flight in led.items():
        request = items.requests[place]
        elected = yield from elected_for(space, request, flight, Patience(0.0), None)
        if isinstance(elected, Terms):
            granted.append(Led(place, request, flight, elected))
        elif elected == Abandoned(TIMED_OUT):
            busy.append(place)
        else:
            space.flights.end(flight, elected)
    return granted, busy


def _parted(granted: Sequence[Led], limit: int | None) -> Iterator[Sequence[Led]]:
    size = limit or max(1, len(granted))
    for start in range(0, len(granted), size):
        yield granted[start : start + size]


def _load_part(space: Space, items: Items, part: Sequence[Led]) -> Flow[None]:
    with ExitStack() as holding:
        for each in part:
            forget = partial(space.flights.forget, each.flight)
            holding.enter_context(space.holding(each.flight.key, each.terms.begun, forget, partial(_is_dead, each.flight)))
        try:
            yield from _loaded_part(space, items, part)
        except GeneratorExit:
            raise
        except BaseException:
            for each in part:
                yield from release(space, each.flight.key, each.terms.begun, failed=True, lease_alone=each.flight.fenced)
            raise


def _loaded_part(space: Space, items: Items, part: Sequence[Led]) -> Flow[None]:
    wanted, parts = [], []
    for each in part:
        if each.request.unmoved is not None and not (yield Ask(each.request.unmoved)):
            yield from release(space, each.flight.key, each.terms.begun, failed=True, lease_alone=each.flight.fenced)
            space.flights.end(each.flight, Abandoned(KeyMoved()))
        else:
            wanted.append(each)
            parts.append(each.request.parts())
    if not wanted:
        return
    counters, started, raised, values = wanted[0].request.counters, (yield Now()), None, []
    try:
        values = _checked((yield Load(partial(items.invoke, [each.place for each in wanted]))), len(wanted))
    except Exception as error:
        raised = error
    now = yield Now()
    counters.load(now - started, failed=raised is not None)
    for index, each in enumerate(wanted):
        if raised is not None:
            each.flight.phase = Phase.SETTLING
            valid = yield from unchanged(space, each.flight.key, each.terms.names, each.terms.begun)
            yield from release(space, each.flight.key, each.terms.begun, failed=True, lease_alone=each.flight.fenced)
            space.flights.end(each.flight, Failed(raised, overtaken=not valid))
            continue
        counters.spend(values[index])
        counters.loaded_by.append(parts[index])
        seconds = seconds_of(space, each.request, values[index])
        if each.request.unchanged is not None and not (yield Ask(each.request.unchanged)):
            seconds = 0.0
        fields = fields_of(each.request, (now - started) / len(wanted), parts[index])
        outcome = yield from landed(space, each.request, each.flight, each.terms, values[index], seconds, now, fields)
        space.flights.end(each.flight, outcome)


def _is_dead(flight: Flight) -> bool:
    return flight.dead


def _checked(values: Any, count: int) -> list[Any]:
    found = list(values)
    if len(found) != count:
        raise CacheError(
            f"a function with batch= gave {len(found)} results for {count} items: it must give one for each, in order"
        )
    return found


def _followed_answer(space: Space, request: Request, flight: Flight, phase: Phase) -> Flow[Answer]:
    try:
        itself = flight.waits_for_itself(blocking=not request.awaits)
        outcome = None if itself else (yield Wait(flight, Patience(request.rules.wait)))
    finally:
        flight.leave()
    if outcome is None:
        return (yield from compute(request))
    if isinstance(outcome, TimedOut):
        return (yield from waited_in_vain(space, request, None))
    answer: Answer | None = yield from follower_answer(space, request, phase, outcome)
    return (yield from call(space, request)) if answer is None else answer
