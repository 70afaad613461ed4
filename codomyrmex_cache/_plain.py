"""The safe format: plain data, and values of named classes, as bytes that cannot run code or name a class to import.

A value becomes one main frame and, for large memory, further frames.  The first byte of the main frame tells its form:

- ``s``: the rest is a text itself, in UTF-8 with lone surrogates.
- ``b``: the rest are the bytes themselves; if there are many, they are the second frame.
- ``j``: JSON that means itself, with each list and dict met once.  The C parser gives the value, nothing walks over it.
- ``t``: JSON of ``[classes, value]``, where the value is tagged data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from codomyrmex_cache._tagged import LARGE, MAX_DEPTH, Buffer, Packer, Recipe, Recipes, Unpacker
from codomyrmex_cache.errors import CacheCodecError

__all__ = ["json_bytes", "json_value", "safe_dumps", "safe_frames", "safe_loads", "safe_value"]


class _NoRecipes:
    """No class at all."""

    def of(self, kind: type) -> Recipe | None:
        return None

    def named(self, name: str) -> Recipe | None:
        return None


_NONE = _NoRecipes()

# -- JSON ------------------------------------------------------------------------------------------------------------


def _refuse(value: object) -> NoReturn:
    raise CacheCodecError(f"not JSON: {str(value)[:40]!r}")


def _fast_encoder() -> Callable[[object], str]:
    """`JSONEncoder.encode` builds the C encoder anew at each call, at twice the price of encoding a small value."""
    encoder = json.JSONEncoder(
        ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"), default=_refuse
    )
    build = getattr(json.encoder, "c_make_encoder", None)
    basestring = getattr(json.encoder, "encode_basestring", None)
    if build is None or basestring is None:
        return encoder.encode
    chunks = build(None, _refuse, basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(chunks(value, 0))  # one chunk, or several of a long text


_encode = _fast_encoder()
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(parse_constant=_refuse).scan_once  # type: ignore[attr-defined]

_SCALARS = frozenset({str, int, float, bool, type(None)})
_TEXT = frozenset({str})


def _is_json(value: Any, met: set[int], depth: int) -> bool:
    """Whether the JSON of a list or dict says all about it; numbers that JSON cannot write are found by the encoder."""
    if id(value) in met or depth > MAX_DEPTH:
        return False
    met.add(id(value))
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _SCALARS and not _is_container(item, met, depth)):
                return False
        return True
    if _SCALARS.issuperset(map(type, value)):  # at the speed of C: vectors of numbers are long
        return True
    return all(type(item) in _SCALARS or _is_container(item, met, depth) for item in value)


def _is_container(item: Any, met: set[int], depth: int) -> bool:
    return (type(item) is dict or type(item) is list) and _is_json(item, met, depth + 1)


def json_bytes(value: object) -> bytes:
    """The JSON of a value that JSON keeps exactly.

    Raises:
        CacheCodecError: it does not: another type, a number JSON has no form for, a lone surrogate, an alias.
    """
    kind = type(value)
    if kind not in _SCALARS and not ((kind is dict or kind is list) and _is_json(value, set(), 0)):
        raise CacheCodecError(f"JSON would change this {kind.__qualname__}: it keeps lists, dicts with text keys and scalars")
    return _encode(value).encode()


def json_value(main: Buffer) -> Any:
    """What the JSON says."""
    return _parsed(str(main, "utf-8"), 0)


def _parsed(text: str, start: int) -> Any:
    value, end = _scan(text, start)
    if end != len(text):
        raise CacheCodecError("not a safe payload: something follows the value")
    return value


# -- frames ----------------------------------------------------------------------------------------------------------


def safe_frames(value: Any, recipes: Recipes = _NONE, large: float = LARGE) -> list[Buffer]:
    """The main frame, and a frame for each memory of at least `large` bytes.

    Raises:
        CacheCodecError: something in it is not plain data nor of a named class, by exact type.
    """
    kind = type(value)
    if kind is str:
        return [b"s" + value.encode("utf-8", "surrogatepass")]
    if kind is bytes:
        return [b"b" + value] if len(value) < large else [b"b", value]
    try:
        if kind in _SCALARS or ((kind is dict or kind is list) and _is_json(value, set(), 0)):
            try:
                return [("j" + _encode(value)).encode("utf-8", "surrogatepass")]
            except ValueError:  # not finite, or an integer of thousands of digits
                pass
        packer = Packer(recipes, large)
        packed = packer.whole(value)
        main = "t" + _encode([packer.classes, packed])
        return [main.encode("utf-8", "surrogatepass"), *packer.frames]
    except CacheCodecError:
        raise
    except Exception as error:  # user code in metaclasses, a dict changed by another thread, too deep for this stack
        raise CacheCodecError(f"{kind.__qualname__} is not plain data ({type(error).__name__})") from error


def safe_value(frames: Sequence[Buffer], recipes: Recipes = _NONE) -> Any:
    """The value of the frames; whatever these are, nothing but plain data and values of named classes is made.

    Raises:
        UnnamedTypeError: a class is not named by `recipes`.
        Exception: any other, for bytes that were not written by `safe_frames`.
    """
    main = frames[0]
    form = main[0]
    if form == 0x73 and len(frames) == 1:  # s
        return str(main[1:], "utf-8", "surrogatepass")
    if form == 0x6A and len(frames) == 1:  # j
        return _parsed(str(main, "utf-8", "surrogatepass"), 1)
    if form == 0x74:  # t
        classes, packed = _parsed(str(main, "utf-8", "surrogatepass"), 1)
        return Unpacker(recipes, classes, frames[1:]).whole(packed)
    if form == 0x62 and (len(frames) == 1 or (len(frames) == 2 and len(main) == 1)):  # b
        return bytes(main[1:] if len(frames) == 1 else frames[1])
    raise CacheCodecError("not a safe payload: unknown form")


def safe_dumps(value: object) -> bytes:
    """Plain data as bytes.

    Raises:
        CacheCodecError: something in it is not plain data, by exact type.

    >>> safe_dumps({"a": [1, None]})
    b'j{"a":[1,null]}'
    """
    return bytes(safe_frames(value, large=float("inf"))[0])


def safe_loads(payload: bytes) -> Any:
    """The value that `safe_dumps` wrote.

    Raises:
        CacheCodecError: it did not write these bytes.

    >>> safe_loads(safe_dumps({1: ("a", b"b"), "n": float("inf")}))
    {1: ('a', b'b'), 'n': inf}
    """
    try:
        return safe_value([payload])
    except CacheCodecError:
        raise
    except Exception as error:  # planted bytes may make any of the constructors raise anything
        raise CacheCodecError(f"not a safe payload ({type(error).__name__})") from error
