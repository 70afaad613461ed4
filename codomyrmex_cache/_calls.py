"""One decorated function: its keys and its cold path; its control methods are in `_memo`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from codomyrmex_cache._alone import Alone
from codomyrmex_cache._cold import THROUGH, ColdCall, Finished, Held
from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._effects import Answer, Request
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._flow import call, opened
from codomyrmex_cache._front import Front
from codomyrmex_cache._isolation import is_awaitable, is_immutable
from codomyrmex_cache._keying import Keying, make_keyer
from codomyrmex_cache._kind import kind_of
from codomyrmex_cache._ledger import appraise
from codomyrmex_cache._load import NOT_LOOKED, Looked
from codomyrmex_cache._log import Log
from codomyrmex_cache._policy import Rules
from codomyrmex_cache._record import replace
from codomyrmex_cache._sdk import call_of, classes_in
from codomyrmex_cache._signature import RESERVED, compile_function, shape_of
from codomyrmex_cache.cache import Cache
from codomyrmex_cache.errors import CacheConfigurationError, CacheMissError, UnkeyableError
from codomyrmex_cache.keys import Key
from codomyrmex_cache.modes import unveil_if_normal

if TYPE_CHECKING:
    from codomyrmex_cache._bare import Bare
    from codomyrmex_cache._lane import Lane
    from codomyrmex_cache.streams import AsyncCachedStream, CachedStream, Opened

__all__ = ["Calls", "Tags", "heard"]

logger = Log(__name__)

Tags = Sequence[str] | Callable[..., Sequence[str]]
"""Tags of every result, or a function of the call's arguments that gives them."""


class Calls:
    """What the wrapper of one function and its cache share: keys, and what a call does that the front could not answer.

    Args:
        function: the user's.
        cache: its namespace.
        rules: what the decorator says about time and storing.
        keying: what it says about keys.
        tags: of its results.
        types: that its results may be of, beside plain data and those that its annotation names.
    """

    def __init__(
        self, function: Callable[..., Any], cache: Cache, *, rules: Rules, keying: Keying, tags: Tags = (),
        types: Sequence[type] = (),
    ) -> None:  # fmt: skip
        self.function = function
        self.cache = cache
        sdk = call_of(function)
        self.rules = rules = rules if sdk is None else _sdk_rules(rules)
        self.shape = shape_of(function)
        self.keyer = make_keyer(function, self.shape, keying)
        self._strict = keying.strict
        self.counters = cache.counters(self.keyer.name)
        self.counters.appraise = partial(appraise, rules.cost, self.counters)
        self.keyer.classes.extend(types)
        cache.expect(self.keyer.name, function, self.keyer.classes)
        kind = kind_of(function)
        self.is_async, self._hinted, self._streams_async = kind.coroutine, kind.hinted, kind.async_generator
        self.gives_stream = kind.generator or kind.async_generator
        if self.gives_stream and not rules.share_streams:
            raise CacheConfigurationError(
                f"{self.keyer.name} is a generator function: its result can be used only once; "
                f'leave stream="share", or cache a function that returns a list'
            )
        hot = self.keyer.depends_on_arguments_only and rules.front and not self.gives_stream
        self.front = Front(self.shape, self.keyer, enabled=hot)
        self._call = self._compiled(function)
        self._passes = sdk is not None and sdk.gives_manager
        self._parses = sdk is not None and sdk.method.endswith("parse") and rules.copy
        self._tagged = bool(tags)
        self._tags = self._compiled(tags) if callable(tags) else lambda _: tags
        self._bind = compile_function(
            f"def {RESERVED}function({self.shape.declaration}): return {self.shape.bound}",
            getattr(function, "__name__", "call"),
            self.shape.defaults,
        )

    @property
    def entrance(self) -> tuple[Literal["plain", "coroutine", "other"], Callable[..., Any]]:
        """What kind of wrapper the function needs, and what that calls when the front has no answer."""
        if self._passes:
            return "other", self._passed
        if self.gives_stream:
            return "other", self.stream
        return ("coroutine", self.acold) if self.is_async else ("plain", self.cold)

    @cached_property
    def lane(self) -> Lane | None:
        """The short way of its hits, if there is one."""
        if self._tagged or self._parses or not self.cache.space.looks_first:
            return None
        from codomyrmex_cache._lane import lane_of

        return lane_of(self.cache.space, self.rules, self.counters, awaited=self.is_async)

    @cached_property
    def bare(self) -> Bare | None:
        """The short way of its misses, if there is one."""
        if self._tagged or self._hinted or self.is_async or self.gives_stream or self.cache.space.backend.payload == "bytes":
            return None
        from codomyrmex_cache._bare import bare_of

        return bare_of(self)

    def _passed(self, bound: tuple[Any, ...]) -> Any:
        self.counters.add("bypasses")
        return self._call(bound)

    def _compiled(self, target: Callable[..., Any]) -> Callable[[tuple[Any, ...]], Any]:
        """`target` as a function of the bound arguments."""
        source = f"def {RESERVED}function({RESERVED}bound): return {RESERVED}target({self.shape.unpacked})"
        return compile_function(source, "call", {f"{RESERVED}target": target})

    # -- modes

    def veil(self) -> None:
        """Look nowhere, and ask for the mode, at each call."""
        self.front.veil(self.ask)

    def unveil(self) -> None:
        """Answer as the mode of the namespace allows."""
        space = self.cache.space
        mode = space.stance.mode
        if mode not in ("off", "refresh"):
            self.front.unveil(None if mode == "normal" else self.ask)

    def ask(self, bound: tuple[Any, ...]) -> Any:
        """Answer a call while a mode is, or may be, in force."""
        ruling = self.cache.space.ruling()
        unveil_if_normal(self)
        kind, cold = self.entrance
        if ruling.mode == "off":
            self.counters.add("bypasses")
            if self.gives_stream:
                return self._unshared(bound)
            return THROUGH if kind == "plain" else self._call(bound)
        if ruling.mode == "normal":
            cold = self.front.cold
        elif kind == "plain":
            cold = self.long
        try:
            return cold(bound)
        except CacheMissError as error:
            if not self._hinted:
                raise
            return Finished(_raising(error))

    def _unshared(self, bound: tuple[Any, ...]) -> CachedStream[Any] | AsyncCachedStream[Any]:
        """A stream of the caller's own, with what callers expect of it."""
        found: Callable[[], Opened] = lambda: opened(Answer(Entry(self._call(bound))))  # noqa: E731

        async def afound() -> Opened:
            return found()

        return heard(afound if self._streams_async else found, is_async=self._streams_async)

    # -- calls

    def cold(self, bound: tuple[Any, ...]) -> Any:
        """Answer a call that the front could not, as far as the function; if that gives an awaitable, so does this."""
        return self.long(bound) if self.bare is None else self.bare.begin(bound)

    def long(self, bound: tuple[Any, ...]) -> Any:
        """The same by the key."""
        try:
            key = self.keyer.key(bound)
        except UnkeyableError as error:
            return Finished(self._uncached(error, partial(self._call, bound)))
        request = None
        if self._hinted and self.front.asks:
            request = self._request(key, partial(self._call, bound), bound)
        if not self._hinted or (request is not None and request.ruling.mode == "replay"):
            looked = self.lane.look(key) if self.lane is not None and not self.front.asks else NOT_LOOKED
            if type(looked) is Alone:
                return self._alone(looked, key, bound)
            if type(looked) is not Looked:
                return Finished(looked)
            return ColdCall(self, bound, self._request(key, partial(self._call, bound), bound), looked)
        invoke: Callable[[], Any] = partial(self._call, bound)
        # A wrapper around a coroutine function.  Calling it tells whether it hands the coroutine on or runs it itself;
        # if it hands it on, nothing has run yet, and a loop need not wait for the store meanwhile.
        try:
            result = invoke()
        except BaseException:
            self.counters.add("misses")
            raise
        if is_awaitable(result):
            return Finished(self.adopt(self._request(key, invoke, bound), bound, result))
        self._hinted = False
        cold = ColdCall(self, bound, self._request(key, invoke, bound))
        if cold.load is not None:
            cold.resume(result)
        return cold

    async def acold(self, bound: tuple[Any, ...]) -> Any:
        """The same in an event loop."""
        try:
            key = self.keyer.key(bound)
        except UnkeyableError as error:
            return await self._uncached(error, partial(self._call, bound))
        looked = await self.lane.alook(key) if self.lane is not None and not self.front.asks else NOT_LOOKED
        if type(looked) is Alone:
            return await self._run_alone(self._alone(looked, key, bound), bound)
        if type(looked) is not Looked:
            return looked
        request = self._request(key, partial(self._call, bound), bound, awaits=True)
        space = self.cache.space
        answer = await arun(space, call(space, request, looked), looked.meter)
        return self.finish(answer, bound, request)

    def _alone(self, alone: Alone, key: Key, bound: tuple[Any, ...]) -> Alone:
        if self.rules.share_streams:
            alone.view = partial(self._own_view, key, bound)
        return alone

    def _own_view(self, key: Key, bound: tuple[Any, ...], stream: Any) -> CachedStream[Any] | AsyncCachedStream[Any]:
        """A stream of this caller's own; heard again, it is that of a call of its own."""
        return self._view(Answer(Entry(stream)), self._request(key, partial(self._call, bound), bound, awaits=self.is_async))

    async def _run_alone(self, alone: Alone, bound: tuple[Any, ...]) -> Any:
        try:
            value = await self._call(bound)
        except BaseException as error:
            alone.resume(None, error)
        else:
            alone.resume(value)
        return alone.finish()

    async def adopt(self, request: Request, bound: tuple[Any, ...], awaitable: Awaitable[Any]) -> Any:
        """Finish in the event loop a call whose function has already given back its awaitable."""
        asked = request  # it says in which mode
        request = self._request(request.key, Held(awaitable), bound, awaits=True)._replace(
            ruling=asked.ruling, shown=asked.shown, explain=asked.explain
        )
        answer = await arun(self.cache.space, call(self.cache.space, request))
        return self.finish(answer, bound, request)

    def stream(self, bound: tuple[Any, ...]) -> Any:
        """Answer a call of a generator function: like a generator it does nothing before its first item is wanted."""
        asynchronous = self._streams_async
        try:
            key = self.keyer.key(bound)
        except UnkeyableError as error:
            return self._uncached(error, partial(self._call, bound))
        request = self._request(key, partial(self._call, bound), bound, awaits=asynchronous, later=True)
        return heard(partial(self._aopened if asynchronous else self._opened, request), is_async=asynchronous)

    def _opened(self, request: Request) -> Opened:
        return opened(run(self.cache.space, call(self.cache.space, request)))

    async def _aopened(self, request: Request) -> Opened:
        return opened(await arun(self.cache.space, call(self.cache.space, request)))

    def _request(
        self, key: Key, invoke: Callable[[], Any], bound: tuple[Any, ...], *, awaits: bool = False, later: bool = False
    ) -> Request:
        """Before its function starts, an event loop or a stream may let others change what the key was made of."""
        still = partial(self._is_still, key, bound)
        unmoved = still if (awaits or later) and not all(map(is_immutable, bound)) else None
        unchanged = still if self.keyer.volatile else None
        parts, tags = partial(self._parts, bound), partial(self._tags_of, bound)
        request = Request(key, invoke, self.counters, self.rules, awaits, tags, parts, unmoved, unchanged, still)
        if not self.front.asks:
            return request
        ruling = self.cache.space.ruling()
        shown = self._shown(key, bound) if ruling.shows or ruling.mode == "replay" else b""
        return request._replace(ruling=ruling, shown=shown, explain=partial(self.explained, bound, shown))

    def _shown(self, key: Key, bound: tuple[Any, ...]) -> bytes:
        """The arguments that count and are not what they would be anyway."""
        from codomyrmex_cache._shown import shown_call

        defaults = self.shape.default_of
        names = self.shape.names
        kept = self.keyer.kept if self.keyer.takes_arguments else range(len(names))
        said = [(names[index], bound[index]) for index in kept]
        said = [(name, value) for name, value in said if name not in defaults or defaults[name] is not value]
        try:
            return shown_call([name for name, _ in said], [value for _, value in said], key, self._parts(bound))
        except Exception:  # arguments are the user's, who has a use for the call even if it cannot be shown
            self.counters.error("unshowable")
            return b""

    def explained(self, bound: tuple[Any, ...], shown: bytes = b"") -> Any:
        """The flow that explains a bound call."""
        from codomyrmex_cache._explain import explain

        return explain(self.cache.space, self.keyer, self.keyer.key(bound), self._parts(bound), self.counters, shown)

    def _tags_of(self, bound: tuple[Any, ...]) -> Sequence[str]:
        tags = self._tags(bound)
        if isinstance(tags, str):
            raise TypeError(f"tags are {tags!r}: give a list of str")
        return tuple(tags)

    def _parts(self, bound: tuple[Any, ...]) -> Sequence[tuple[str, bytes]]:
        try:
            return self.keyer.parts(bound)
        except UnkeyableError:  # changed since the key was made; the explanation is the poorer for it
            return ()

    def _is_still(self, key: Key, bound: tuple[Any, ...]) -> bool:
        try:
            return self.keyer.key(bound) == key
        except UnkeyableError:
            return False

    def finish(self, answer: Answer, bound: tuple[Any, ...], request: Request) -> Any:
        """The result of a call, or its exception raised."""
        if answer.entry is None:
            assert answer.error is not None
            raise answer.error
        if answer.entry.streamed:
            return self._view(answer, request)
        if answer.entry.awaited is self.is_async:  # a plain wrapper that returns awaitables has no use for bare values
            self.front.promote(bound, request.key, self.cache.space, self.counters, answer.entry)
        if self._parses:
            from codomyrmex_cache._models import refit

            return refit(answer.entry.value, classes_in(bound))
        return answer.entry.value

    def _view(self, answer: Answer, request: Request) -> CachedStream[Any] | AsyncCachedStream[Any]:
        first = [opened(answer)]
        if not first[0][0].is_async:
            return heard(lambda: first.pop() if first else self._opened(request), is_async=False)

        async def open_it() -> Opened:
            return first.pop() if first else await self._aopened(request)

        return heard(open_it, is_async=True)

    def _uncached(self, error: UnkeyableError, invoke: Callable[[], Any]) -> Any:
        if self._strict:
            raise error
        self.counters.add("bypasses")
        if self.front.asks and self.cache.space.ruling().mode == "replay":
            name = self.cache.name
            raise CacheMissError(
                f"replay: a call of {self.keyer.name} has no key ({error})", name, "", self.keyer.name
            ) from error
        if self.counters.error("unkeyable") == 1:
            logger.warning(
                "%s is called without caching: %s.  Leave the parameter out of the key with ignore=, say what counts with "
                "Annotated[..., By(function)], or give its class a __cache_key__ method.",
                self.keyer.name, error,
            )  # fmt: skip
        return invoke()


def _sdk_rules(rules: Rules) -> Rules:
    """Of an SDK's calls, whole answers alone are stored if nothing else is said."""
    if rules.store_if is not None:
        return rules
    from codomyrmex_cache._completions import ok_completion

    return replace(rules, store_if=ok_completion)


async def _raising(error: CacheMissError) -> Any:
    raise error


def heard(source: Any, *, is_async: bool) -> CachedStream[Any] | AsyncCachedStream[Any]:
    """What a caller is given of a stream."""
    from codomyrmex_cache.streams import AsyncCachedStream, CachedStream

    return AsyncCachedStream(source) if is_async else CachedStream(source)
