"""Calls of the OpenAI and Anthropic SDKs: what counts for their keys, with no SDK imported.

A call counts by its provider's method, its client and all arguments but those that cannot change the answer: how long to
wait, how often to try, secrets.  Arguments count as the SDK sends them, so that its own objects and plain dicts with the same
content agree.

A client counts by class, base URL, organization, project, API version, default query and default headers, and by whatever
attributes somebody else gave it; never by a secret, and never by its address.  It is looked at anew at each call.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from os import PathLike, fspath
from os.path import basename
from types import CodeType, FunctionType, GenericAlias, MethodType
from typing import Any, NamedTuple

from codomyrmex_cache._code import code_parts
from codomyrmex_cache._encoding import encode, encode_into
from codomyrmex_cache._objects import OPEN, SPECIAL, describe, module_name, type_identity
from codomyrmex_cache.errors import UnkeyableError

__all__ = ["PACKAGES", "SdkCall", "arguments_of", "call_of", "classes_in", "is_sdk_object"]

PACKAGES = ("openai", "anthropic")


class SdkCall(NamedTuple):
    """A bound method of an SDK's client.

    Args:
        package: "openai" or "anthropic".
        method: the way from the client to it, as in "chat.completions.create".
        client: the object that the requests go through.
    """

    package: str
    method: str
    client: Any

    @property
    def name(self) -> str:
        """Of the function in keys and reports; the same in all versions of the SDK."""
        return f"{self.package}.{self.method}"

    @property
    def gives_manager(self) -> bool:
        """Whether it gives something that makes its request when it is entered, once."""
        return self.method.rpartition(".")[2] in ("stream", "connect")


def call_of(function: Any) -> SdkCall | None:
    """What a bound method of a client's resource calls; `None` for any other function.

    A method that somebody else has overridden or wrapped is a function like any other: it may do anything.
    """
    if type(function) is not MethodType:
        return None
    resource, inner = function.__self__, function.__func__
    package = _root(type(resource))
    if package not in PACKAGES or _root(inner) != package or not _is_resource(type(resource)):
        return None
    place = type(resource).__module__.partition(".resources.")[2].split(".")
    way = [name for index, name in enumerate(place) if name != place[index - 1] or index == 0]
    client = getattr(resource, "_client", None)
    if client is None or way == [""]:
        return None
    return SdkCall(package, ".".join([*way, inner.__name__]), client)


def is_sdk_object(value: object) -> bool:
    """Whether it is a client or a resource of one, whose rules say all that counts."""
    return any(_root(base) in PACKAGES and base.__name__ in _STATEFUL for base in type(value).__mro__)


_STATEFUL = frozenset({"BaseClient", "SyncAPIResource", "AsyncAPIResource"})


def _root(named: Any) -> str:
    return str(getattr(named, "__module__", "")).partition(".")[0]


def _is_resource(kind: type) -> bool:
    return any(base.__name__ in ("SyncAPIResource", "AsyncAPIResource") for base in kind.__mro__)


# -- clients -----------------------------------------------------------------------------------------------------------

_STATE = frozenset({
    "_api_version", "_azure_deployment", "_azure_endpoint", "_data_residency", "_location", "_middleware", "_project",
    "_strict_response_validation", "organization", "project",
})  # fmt: skip
"""Attributes of the SDKs' clients that count unless they are `None`; all other public ones do too but for these:"""

_NOT_STATE = frozenset({"copy", "with_options", "max_retries", "timeout", "websocket_base_url", "workload_identity"})

_UNDECLARED = frozenset({
    "_api_key_provider", "_azure_ad_token", "_azure_ad_token_provider", "_custom_headers", "_custom_query", "_delete", "_get",
    "_get_api_list", "_lazy_tracer", "_open_telemetry", "_otel", "_patch", "_platform", "_post", "_put",
})  # fmt: skip
"""What their code sets beside the attributes that it declares."""


def _client(client: Any) -> object:
    """What of a client can change its answers."""
    kind: Any = type(client)
    state = vars(client)
    counting = {
        "base_url": re.sub(r"//[^/@]*@", "//", str(client.base_url)),
        "headers": _headers(state.get("_custom_headers")),
        "query": _without_secrets(state.get("_custom_query")),
        "provider": getattr(state.get("_provider_runtime"), "name", None),
        **_set_attributes(kind, state),
    }
    return {name: value for name, value in counting.items() if value is not None}


def _resource(resource: Any) -> object:
    """A part of a client: its client and what somebody else gave it."""
    kind: Any = type(resource)
    return resource._client, _set_attributes(kind, vars(resource))


def _set_attributes(kind: Any, state: dict[str, Any]) -> dict[str, object]:
    """Those that count, each with its encoding."""
    names = state.keys() - _machinery(kind)
    if not all(name[:1] != "_" or name in _STATE for name in names):
        names -= _set_by_sdk(kind)
    counting: dict[str, object] = {}
    for name in names:
        value = state[name]
        if (value is None and name in _STATE) or _is_resource(type(value)):
            continue
        try:
            counting[name] = encode(value)
        except UnkeyableError as error:
            raise UnkeyableError(f"attribute {name!r} of {kind.__qualname__}: {error.reason}") from error
    return counting


@lru_cache(maxsize=64)
def _machinery(kind: type) -> frozenset[str]:
    """Attributes that do not count: what the SDK declares, and what is made of other attributes when it is wanted."""
    declared = set(_UNDECLARED)
    derived: set[str] = set()
    for base in kind.__mro__:
        derived.update(name for name, item in vars(base).items() if type(item).__name__ == "cached_property")
        if _root(base) in PACKAGES:
            declared.update(vars(base), vars(base).get("__annotations__", ()))
    counting = {name for name in declared if name[:1] != "_" and name not in _NOT_STATE and not _is_secret(name)}
    return frozenset((declared - counting - _STATE) | derived)


@lru_cache(maxsize=64)
def _set_by_sdk(kind: type) -> frozenset[str]:
    """Private attributes that the SDK's code sets; looked for where there are some that it has not declared (40 ms)."""
    items = [item for base in kind.__mro__ if _root(base) in PACKAGES for item in vars(base).values()]
    names = {name for item in items for code in _codes(item) for name in _set_by(code) if name[:1] == "_"}
    return frozenset(names - _STATE)


def _set_by(code: CodeType) -> set[str]:
    """The attributes that some code sets."""
    from dis import get_instructions

    return {step.argval for step in get_instructions(code) if step.opname == "STORE_ATTR"}


def _codes(item: Any) -> Iterator[CodeType]:
    """Of a function, of a property, of what wraps one."""
    for function in (item, *(getattr(item, part, None) for part in ("__func__", "fget", "fset", "func", "wrapped"))):
        if isinstance(function, FunctionType):
            yield function.__code__


# -- secrets -----------------------------------------------------------------------------------------------------------

_SECRET_ENDS = re.compile(
    r"(^|[-_])(auth|authorization|credentials?|password|secret|apikey|idempotency[-_]key|"
    r"(access|admin|api|auth|bearer|secret|security|session|subscription|webhook)[-_](key|token))$|^(cookie|signature|token)$"
)
"""A `page_token` and its like are none: they say what is wanted."""


def _is_secret(name: str) -> bool:
    """Whether what has this name is a secret, or the name of the request alone (`Idempotency-Key`)."""
    return _SECRET_ENDS.search(name.lower()) is not None


def _without_secrets(values: Any) -> Any:
    """Members of a mapping; `None` if none is left."""
    if not hasattr(values, "items"):
        return values
    return {name: _canonical(value) for name, value in values.items() if not _is_secret(str(name))} or None


def _headers(values: Any) -> Any:
    """The case of their names does not count; one that is to be omitted is another thing than one that is not there."""
    kept = _without_secrets(values)
    if not isinstance(kept, dict):
        return kept
    return sorted(((str(name).lower(), encode(value)) for name, value in kept.items()))


# -- arguments ---------------------------------------------------------------------------------------------------------

_EXCLUDED = frozenset({"timeout", "max_retries", "http_client", "idempotency_key"})
_FILTERED: dict[str, Callable[[Any], Any]] = {
    "extra_headers": _headers, "extra_query": _without_secrets, "extra_body": lambda value: _canonical(value) or None,
}  # fmt: skip
"""Whose `None` is the SDK's default."""


def arguments_of(call: SdkCall, names: Sequence[str], bound: Sequence[Any]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The arguments that may count, by name in order of the alphabet, each with what gives its encoding: empty if it does not.

    Args:
        call: what is called.
        names: of the parameters, of which `args` and `kwargs` stand for several.
        bound: their values.
    """
    given: dict[str, Any] = {}
    for name, value in zip(names, bound, strict=True):
        if name == "kwargs":
            given |= value
        elif name != "args" or value:
            given[name] = value
    parses = not call.method.endswith("create")
    for name in sorted(given):
        if name not in _EXCLUDED and not _is_sentinel(given[name]):
            yield name, partial(_argument, name, given[name], parses=parses)


def _argument(name: str, value: Any, *, parses: bool) -> bytes:
    if name not in _FILTERED:
        return encode((name, _canonical(value, parses=parses)))
    counting = _FILTERED[name](value)
    return encode((name, counting)) if counting is not None else b""


def _is_sentinel(value: object) -> bool:
    kind = type(value)
    return kind.__name__ in ("NotGiven", "Omit") and _root(kind) in PACKAGES


class _Content:
    """Something told by its content; its tag keeps it apart from any value that looks alike."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: object) -> None:
        self._parts = parts

    def __cache_key__(self) -> object:
        return self._parts


def _canonical(value: Any, *, parses: bool = False) -> Any:
    """The value as the SDK sends it: of its own objects and of plain data with the same content the same."""
    kind = type(value)
    if kind is str or kind is int or value is None or kind is bool or kind is float:
        return value
    inner = partial(_canonical, parses=parses)
    if kind is dict or kind is OrderedDict:
        return {key: inner(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind(map(inner, value))
    if hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_dump"):
        return _model(value)
    if _root(kind) in PACKAGES and isinstance(value, dict):  # a function tool; it is parsed into the class it was made of
        plain = {key: inner(item) for key, item in value.items()}
        return _Content("tool", plain, _schema(value.model)) if parses and hasattr(value, "model") else plain
    if isinstance(value, (type, GenericAlias)):
        return _schema(value)
    if isinstance(value, PathLike):
        with open(value, "rb") as file:
            return _Content("file", basename(fspath(value)), file.read())
    return _file(value) if hasattr(kind, "read") else value


def _model(value: Any) -> object:
    """A pydantic object as both SDKs dump it; where field names and aliases differ they do not agree how, so both count."""
    dump = partial(
        value.model_dump, mode="json", exclude_unset=True, warnings=False, exclude=getattr(value, "__api_exclude__", None)
    )
    named, aliased = dump(by_alias=False), dump(by_alias=True)
    return named if named == aliased else _Content("model", type_identity(type(value)), named, aliased)


def _file(file: Any) -> object:
    """All of an open file, wherever it stands: the SDKs send it from its beginning; and it stands there again."""
    try:
        place = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(place)
    except (OSError, ValueError, AttributeError) as error:
        raise UnkeyableError(f"{describe(file)} cannot be read and set back, so its content cannot count") from error
    name = getattr(file, "name", None)
    return _Content("file", basename(name) if isinstance(name, str) else None, content)


def classes_in(bound: Sequence[Any]) -> Iterator[Any]:
    """The classes that the answer of a call with these arguments is to be parsed into."""
    given = [item for value in bound for item in (value.values() if type(value) is dict else (value,))]
    for value in given:
        if isinstance(value, (type, GenericAlias)):
            yield value
        elif type(value) is list or type(value) is tuple:
            yield from (tool.model for tool in value if isinstance(getattr(tool, "model", None), type))


# -- classes that results are parsed into --------------------------------------------------------------------------------

_schemas: dict[int, tuple[Any, Any, bytes]] = {}
"""Of classes, by identity; each with what pydantic had made of it then."""

_MAX_SCHEMAS = 256


def _schema(kind: Any) -> _Content:
    """A class by its name, its JSON schema and the code of its methods, which make the result from the same answer."""
    core = getattr(kind, "__pydantic_core_schema__", None)
    known, made_of, encoded = _schemas.get(id(kind), (None, None, b""))
    if known is not kind or made_of is not core or core is None:
        named = [(module_name(base.__module__), base.__qualname__, _methods(base)) for base in _classes(kind)]
        encoded = encode((named, _json_schema(kind)))
        if len(_schemas) >= _MAX_SCHEMAS:
            _schemas.clear()
        _schemas[id(kind)] = (kind, core, encoded)
    return _Content("class", encoded)


def _json_schema(kind: Any) -> object:
    """`None` for a class that has none; the SDK could not ask for it either."""
    try:
        return sys.modules["pydantic"].TypeAdapter(kind).json_schema()
    except Exception:  # no pydantic, or any of its errors, which say that a field or a reference has no schema
        return None


def _classes(kind: Any) -> list[type]:
    """The classes that tell what it is, but for pydantic's own and the interpreter's."""
    bases = kind.__mro__ if isinstance(kind, type) and hasattr(kind, "__mro__") else (getattr(kind, "__origin__", object),)
    return [base for base in bases if isinstance(base, type) and _root(base) not in ("pydantic", "typing", "abc")]


def _methods(kind: type) -> list[object]:
    return [
        (name, code_parts(code))
        for name, item in sorted(vars(kind).items())
        if getattr(kind, "__module__", "") != "builtins"
        for code in _codes(item)
    ]


# -- where they are arguments of a function of the user's ----------------------------------------------------------------


def _rule(parts: Callable[[Any], object]) -> Callable[[Any, bytearray, int], None]:
    def encoder(value: object, out: bytearray, depth: int) -> None:
        kind = type(value)
        package = _root(kind)
        out += b"@"
        encode_into((package, kind.__name__) if package in PACKAGES else type_identity(kind), out, depth + 1)
        encode_into(parts(value), out, depth + 1)

    return encoder


def _model_class(kind: Any, out: bytearray, depth: int) -> None:
    out += b"@"
    encode_into((type_identity(kind), _schema(kind)), out, depth + 1)


def _sentinel(value: object, out: bytearray, depth: int) -> None:
    out += b"@"
    encode_into("not given", out, depth + 1)


for _package in PACKAGES:
    SPECIAL[_package, "BaseClient"] = _rule(_client)
    SPECIAL[_package, "SyncAPIResource"] = SPECIAL[_package, "AsyncAPIResource"] = _rule(_resource)
    SPECIAL[_package, "NotGiven"] = SPECIAL[_package, "Omit"] = _sentinel
SPECIAL["pydantic", "ModelMetaclass"] = _model_class
OPEN.update((*PACKAGES, "pydantic"))
