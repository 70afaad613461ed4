"""A cache for LangChain's models: `set_llm_cache(CodomyrmexCache("llm", ttl="7d", backend="file_based"))`.

LangChain asks `lookup(prompt, llm_string)`, calls the model itself, and tells `update(prompt, llm_string, generations)`.  Three
things that a right answer depends on are not in these arguments, and are read from the chat model's own frame, which is the
caller's:

- The settings.  A chat model writes `llm_string` from a description of itself that it makes once (`_serialized`, a cached
  property), so after `model.temperature = 0.9` it still tells the old one.  The key has the settings of now as well, where
  they differ.
- The schema.  `with_structured_output(Answer)` stands in `llm_string` by the name of the class, whatever its fields are.
- The run.  It tells which `update` belongs to which `lookup`, and its failure wakes those who wait for it.

Where there is no such frame (plain LLMs, direct calls) the two strings are the key, and nobody waits.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from json import dumps
from types import FrameType
from typing import Any, Unpack

from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._duration import Duration, to_seconds
from codomyrmex_cache._policy import Ttl, lifetime, validated_ttl
from codomyrmex_cache._record import record
from codomyrmex_cache._verbs import clear
from codomyrmex_cache._wiring import CacheOptions
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.cache import Cache
from codomyrmex_cache.errors import CacheCodecError
from codomyrmex_cache.integrations._leads import Lead, Leads, lead_of, may_wait
from codomyrmex_cache.manager import CacheManager
from codomyrmex_cache.stats import CacheStats

try:
    from langchain_core.caches import BaseCache
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.load import dumpd
    from langchain_core.outputs import Generation

    from codomyrmex_cache.integrations._generations import is_model, ok_generations, read, written
except ImportError as error:
    raise ImportError(
        "codomyrmex_cache.integrations.langchain needs langchain-core: pip install 'codomyrmex_cache[langchain]'"
    ) from error

__all__ = ["CodomyrmexCache", "ok_generations"]

_PREFIX = "langchain:"
_CALLERS = ("_generate_with_cache", "_agenerate_with_cache")
_DEEPEST = 6
"""Frames between a cache's method and the model's: subclasses and wrappers of the cache."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{4,}>")


# -- the call behind a lookup or an update -------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class _Call:
    """What the frame of a chat model's call shows."""

    model: Any
    run: Any
    options: dict[str, Any]

    def settings(self, llm_string: str) -> Iterator[str]:
        """What the answer depends on and `llm_string` does not tell."""
        if self.model.is_lc_serializable():
            told = dumps(_cleaned(dumpd(self.model)), sort_keys=True)
            if not llm_string.startswith(told):
                yield told
        for name, value in sorted(self.options.items()):
            if is_model(value):
                yield f"{name}:{dumps(value.model_json_schema(), sort_keys=True)}"

    @property
    def schema(self) -> Any:
        """The class that the answer is to be parsed into, or `None`."""
        wanted = self.options.get("response_format")
        return wanted if is_model(wanted) else None

    @property
    def run_id(self) -> Any:
        return getattr(self.run, "run_id", None)


def _cleaned(described: Any) -> Any:
    """Without the parts that LangChain leaves out too: reprs, which have addresses."""
    if isinstance(described, dict):
        unknown = described.get("type") == "not_implemented"
        return {key: _cleaned(value) for key, value in described.items() if key != "graph" and not (unknown and key == "repr")}
    return [_cleaned(value) for value in described] if isinstance(described, list) else described


def _call_of(frame: FrameType | None) -> _Call | None:
    """The call of a chat model that leads to this frame, if the model is where it is expected."""
    for _ in range(_DEEPEST):
        if frame is None:
            return None
        if frame.f_code.co_name in _CALLERS:
            found = frame.f_locals
            run, options = found.get("run_manager"), found.get("kwargs")
            known = hasattr(found.get("self"), "is_lc_serializable") and isinstance(options, dict)
            return _Call(found["self"], run, options or {}) if known else None
        frame = frame.f_back
    return None


class _Failure(BaseCallbackHandler):
    """Hears when the call of a lead fails, which the cache is not told."""

    def __init__(self, leads: Leads, lead: Lead) -> None:
        self._leads, self._lead = leads, lead

    def on_llm_error(self, error: BaseException, **options: Any) -> None:
        self._leads.end(self._lead)


# -- the cache -----------------------------------------------------------------------------------------------------------


class CodomyrmexCache(BaseCache):
    """A namespace as LangChain's cache of model answers, for `set_llm_cache` or a model's `cache=`.

    Identical calls of chat models that come while one is under way in this process wait for it.  Answers are given as new
    objects; what is stored needs no pickle.  `cache.cache` is the namespace, `cache.stats()` its statistics.

    Args:
        namespace: any non-empty str; may be shared with decorated functions.
        ttl: seconds, `timedelta`, "7d", a callable on the list of generations, or `None` for ever; 0 stores nothing.
        backend: "in_memory", "file_based", "redis", or a backend; by default as for `get_cache`.
        store_if: whether a list of generations is worth keeping; `None` keeps everything.
        wait: at most so long does a call wait for an identical one, before it asks the model itself; 0 for not at all.
        manager: whose namespace; the process-wide manager by default.
        options: any other option of `get_cache`.

    Raises:
        CacheConfigurationError: an option means nothing, or contradicts what the namespace was set up with.

    >>> from langchain_core.outputs import Generation
    >>> from codomyrmex_cache import CacheManager
    >>> cache = CodomyrmexCache("llm", ttl="7d", manager=CacheManager())
    >>> cache.update("What is the capital of Norway?", "model", [Generation(text="Oslo")])
    >>> cache.lookup("What is the capital of Norway?", "model")[0].text
    'Oslo'
    """

    def __init__(
        self,
        namespace: str = "llm",
        ttl: Ttl = None,
        backend: str | Backend | None = None,
        *,
        store_if: Callable[[Sequence[Generation]], bool] | None = ok_generations,
        wait: Duration = 120,
        manager: CacheManager | None = None,
        **options: Unpack[CacheOptions],
    ) -> None:
        owner = CacheManager.default() if manager is None else manager
        self.cache: Cache = owner.get_cache(namespace, backend, **options)
        self._ttl = validated_ttl(ttl)
        self._store_if = store_if
        self._wait = to_seconds(wait, "wait")
        self._leads = Leads()
        self._counters = self.cache.counters("")

    def __deepcopy__(self, memo: dict[int, Any]) -> CodomyrmexCache:
        return self  # of a copied model too it is the same cache

    def stats(self) -> CacheStats:
        """The statistics of the namespace."""
        return self.cache.stats()

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """The stored generations, or `None`.

        Args:
            prompt: as LangChain writes it.
            llm_string: the model and its settings, as LangChain writes them.
        """
        call = _call_of(sys._getframe(1))
        key = self._key(prompt, llm_string, call)
        if key is None:
            self._counters.add("bypasses")
            self._counters.error("unkeyable")
            return None
        found = self._decoded(self.cache.get(key), call)
        deadline = time.monotonic() + self._wait
        while found is None and (lead := self._joined(key, call, blocking=True)) is not None:
            if call is not None and lead.call == _identity(call):
                found = self._late(lead, self._seen(self.cache.entry(key)), call)
                break
            try:
                answer = lead.answer.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                break
            found = self._shared(answer, call)
        return found

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """`lookup` for event loops."""
        call = _call_of(sys._getframe(1))
        key = self._key(prompt, llm_string, call)
        if key is None:
            self._counters.add("bypasses")
            self._counters.error("unkeyable")
            return None
        found = self._decoded(await self.cache.aget(key), call)
        deadline = time.monotonic() + self._wait
        while found is None and (lead := self._joined(key, call, blocking=False)) is not None:
            if call is not None and lead.call == _identity(call):
                found = self._late(lead, self._seen(await self.cache.aentry(key)), call)
                break
            waiting = asyncio.wrap_future(lead.answer)
            done, _ = await asyncio.wait({waiting}, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                break
            found = self._shared(waiting.result(), call)
        return found

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Store generations, if they are worth it.

        Args:
            prompt, llm_string: as for `lookup`.
            return_val: what the model gave.
        """
        key, value, seconds, lead = self._told(prompt, llm_string, return_val, _call_of(sys._getframe(1)))
        try:
            if key is not None:
                self.cache.set(key, value, seconds)
        finally:
            if lead is not None:
                self._leads.end(lead, value)

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """`update` for event loops."""
        key, value, seconds, lead = self._told(prompt, llm_string, return_val, _call_of(sys._getframe(1)))
        try:
            if key is not None:
                await self.cache.aset(key, value, seconds)
        finally:
            if lead is not None:
                self._leads.end(lead, value)

    def clear(self, **kwargs: Any) -> None:
        """Forget what LangChain stored here, and what is being computed; other entries of the namespace stay."""
        self._leads.fence()
        run(self.cache.space, clear(self.cache.space, _PREFIX, self._counters))

    async def aclear(self, **kwargs: Any) -> None:
        """`clear` for event loops."""
        self._leads.fence()
        await arun(self.cache.space, clear(self.cache.space, _PREFIX, self._counters))

    # -- keys

    def _key(self, prompt: str, llm_string: str, call: _Call | None) -> str | None:
        """A digest, since settings may hold headers; `None` if something in the call cannot be told, or only by its address,
        which another object may have tomorrow."""
        if _ADDRESS.search(llm_string) or ('"not_implemented"' in prompt and _ADDRESS.search(prompt)):
            return None
        try:
            settings = () if call is None else tuple(call.settings(llm_string))
        except Exception:  # descriptions and schemas are made by the user's classes
            return None
        digest = blake2b(digest_size=32)
        for part in (prompt, llm_string, *settings):
            content = part.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(content) + content)
        return _PREFIX + digest.hexdigest()

    # -- reading

    def _decoded(self, stored: Any, call: _Call | None) -> list[Generation] | None:
        """What was stored, as the caller's own; counted as a miss after all if it cannot be made again."""
        if stored is None:
            return None
        try:
            return read(stored, *((None, None) if call is None else (call.schema, call.run_id)))
        except CacheCodecError:
            self._counters.add("hits", -1)
            self._counters.add("misses")
            self._counters.error("undecodable")
            return None

    def _joined(self, key: str, call: _Call | None, *, blocking: bool) -> Lead | None:
        """The lead of the key, which may be this call's from now on; `None` for a call that can neither lead nor wait."""
        if call is None or call.run is None or not self._wait or not may_wait(blocking=blocking):
            return None
        own = Lead(key, _identity(call))
        lead = self._leads.join(own)
        if lead is own and blocking:
            call.run.handlers = [*call.run.handlers, _Failure(self._leads, own)]
        elif lead is own:
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lambda _: self._leads.end(own))  # LangChain has one for each call of a model
        return lead

    @staticmethod
    def _seen(entry: Any) -> Any:
        return None if entry is None else entry.value

    def _late(self, lead: Lead, stored: Any, call: _Call) -> list[Generation] | None:
        """What another leader stored between this call's look and its lead."""
        found = self._coalesced(stored, call)
        if found is not None:
            self._leads.end(lead, stored)
        return found

    def _shared(self, answer: Any, call: _Call | None) -> list[Generation] | None:
        """Another call's answer; none if it gave none, or gave objects that it holds itself and that may be stored by now."""
        return self._coalesced(answer, call) if type(answer) is tuple else None

    def _coalesced(self, stored: Any, call: _Call | None) -> list[Generation] | None:
        """As the caller's own; the miss that was counted for this call becomes a coalesced one."""
        found = None if stored is None else self._decoded(stored, call)
        if found is not None:
            self._counters.add("misses", -1)
            self._counters.add("coalesced")
        return found

    # -- writing

    def _told(
        self, prompt: str, llm_string: str, generations: Sequence[Generation], call: _Call | None
    ) -> tuple[str | None, Any, float | None, Lead | None]:
        """Where to store what, if at all, and for how long; and the lead that this ends."""
        lead = None if call is None else lead_of(_identity(call))
        key = self._key(prompt, llm_string, call)
        value = written(generations)
        if lead is not None and (lead.fenced or lead.key != key):  # cleared, or the model's settings changed on the way
            return None, None, None, lead
        if self._store_if is not None and not self._store_if(generations):
            key = None
        seconds = None if key is None else lifetime(self._ttl, generations)
        return key, value, seconds, lead


def _identity(call: _Call) -> tuple[Any, int]:
    """Of a run, which is one call of one model."""
    return call.run.run_id, id(call.model)
