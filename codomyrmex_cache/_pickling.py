"""Pickle, for bytes that are read only behind a MAC."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from codomyrmex_cache._rebuild import field_names, fingerprint
from codomyrmex_cache._tagged import Buffer, mutable
from codomyrmex_cache.errors import CacheCodecError

__all__ = ["pickled", "unpickled"]

_LENGTH = 4
_LARGE = 4096
"""Bytes from which memory becomes a frame of its own, which saves one copy on each side but costs a frame."""


def pickled(value: object) -> list[Buffer]:
    """The main frame, and a frame for each large memory, which the value goes on to share.

    Raises:
        CacheCodecError: neither pickle nor cloudpickle takes the value, or one would lose something of it.
    """
    try:
        return _written(_Careful, value)
    except CacheCodecError:
        raise
    except Exception as first:  # local classes and lambdas: cloudpickle writes them by value
        try:
            return _written(_by_value(), value)
        except CacheCodecError:
            raise
        except Exception as error:  # state and reducers are user code
            raise CacheCodecError(f"{type(value).__qualname__} cannot be pickled ({type(error).__name__})") from first


def unpickled(frames: Sequence[Buffer]) -> Any:
    """The value of the frames, whose MAC was verified.  What was written from memory that could be changed can be again.

    Raises:
        CacheCodecError: a class has other fields than when the value was written.
    """
    main, *rest = frames
    length = int.from_bytes(main[:_LENGTH], "big")
    begin = _LENGTH + length
    buffers = map(mutable, rest)
    if not length:
        return pickle.loads(main[begin:], buffers=buffers)  # noqa: S301  the MAC was verified with our own secret
    shapes = dict(pair.split(b"=") for pair in bytes(main[_LENGTH:begin]).split(b"\n"))
    return _Wary(shapes, io.BytesIO(main[begin:]), buffers=buffers).load()


class _Wary(pickle.Unpickler):
    """Refuses classes that have changed since: pickle would fill an object of today with the fields of then."""

    def __init__(self, shapes: dict[bytes, bytes], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._shapes = shapes

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        expected = self._shapes.get(f"{module}:{name}".encode())
        if expected is not None and expected != fingerprint(found).encode():
            raise CacheCodecError(f"class {module}:{name} has other fields than when the value was stored")
        return found


def _written(pickler: Callable[..., _Careful], value: object) -> list[Buffer]:
    main, frames = io.BytesIO(), list[Buffer]()

    def take(buffer: pickle.PickleBuffer) -> bool:
        memory = buffer.raw()
        if memory.nbytes < _LARGE:
            memory.release()
            return True  # stays in the main frame
        frames.append(memory.toreadonly())
        return False

    careful = pickler(main, protocol=5, buffer_callback=take)
    careful.shapes = {}
    careful.dump(value)
    shapes = b"\n".join(b"%b=%b" % pair for pair in careful.shapes.values() if b"=" not in pair[0])
    return [len(shapes).to_bytes(_LENGTH, "big") + shapes + main.getvalue(), *frames]


class _Careful(pickle.Pickler):
    """Refuses objects that would come back without their attributes, and notes what fields their classes have."""

    shapes: dict[type, tuple[bytes, bytes]]

    def reducer_override(self, obj: Any) -> Any:
        _note_shape(self.shapes, type(obj))
        _refuse_forgetful(obj)
        return NotImplemented


def _by_value() -> Any:
    import cloudpickle  # type: ignore[import-untyped]

    class CarefulByValue(cloudpickle.Pickler):  # type: ignore[misc, unused-ignore]
        shapes: dict[type, tuple[bytes, bytes]]

        def reducer_override(self, obj: Any) -> Any:
            _note_shape(self.shapes, type(obj))
            _refuse_forgetful(obj)
            return super().reducer_override(obj)

    return CarefulByValue


def _note_shape(shapes: dict[type, tuple[bytes, bytes]], kind: type) -> None:
    if kind not in shapes and field_names(kind) is not None:
        shapes[kind] = f"{kind.__module__}:{kind.__qualname__}".encode(), fingerprint(kind).encode()


def _refuse_forgetful(obj: Any) -> None:
    """Subclasses of classes written in C that reduce themselves (Decimal, date, ...) know nothing of what a subclass adds."""
    kind = type(obj)
    if kind.__module__ != "builtins" and _forgets(kind) and object.__getstate__(obj):
        reduced = obj.__reduce_ex__(5)
        if isinstance(reduced, tuple) and (len(reduced) < 3 or reduced[2] is None):
            raise CacheCodecError(f"{kind.__qualname__} loses its attributes when it is pickled")


def _forgets(kind: type) -> bool:
    """Whether a class made in Python leaves its reduction to a base written in C, by others: pandas, which builds its blocks
    over classes of its own in C, knows that what it leaves out can be made again."""
    for base in kind.__mro__[:-1]:
        reduces = vars(base).get("__reduce_ex__") or vars(base).get("__reduce__")
        if reduces is not None:
            return base is not kind and not isinstance(reduces, FunctionType) and _package(base) != _package(kind)
    return False


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
