"""How a parameter enters the key, said at the parameter (`typing.Annotated[Type, marker]`), and what goes into `depends=`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from codomyrmex_cache._files import file_digest, tree_digest
from codomyrmex_cache._versions import Env, File, Package
from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["By", "Env", "File", "FileContent", "Ignore", "Package", "Tree", "transforms_of"]


class Ignore:
    """The parameter is not part of the key: `Annotated[Client, Ignore]`."""


class By:
    """The parameter counts by what `function(value)` answers: `Annotated[Request, By(lambda request: request.id)]`."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        if not callable(function):
            raise CacheConfigurationError(f"By({function!r}): give a function of the argument")
        self.function = function

    def __call__(self, value: Any) -> object:
        return self.function(value)


class FileContent:
    """The parameter is the path of a file and counts by path and content: `Annotated[Path, FileContent]`.

    A `touch` keeps the key, an edit changes it.  A link counts by the content it leads to.  `None` counts as itself.  A result
    is not stored if the file changed while the function ran.
    """

    def __call__(self, value: Any) -> object:
        return None if value is None else (value, file_digest(value))


class Tree:
    """The parameter is a directory and counts by path and the content of its files: `Annotated[Path, Tree("**/*.py")]`.

    Args:
        glob: which files below it, as for `pathlib.Path.glob`.
    """

    def __init__(self, glob: str = "**/*") -> None:
        self.glob = glob

    def __call__(self, value: Any) -> object:
        return None if value is None else (value, self.glob, tree_digest(value, self.glob))


Transform = Callable[[Any], object]
_MARKERS = (Ignore, By, FileContent, Tree)
_FILE_MARKERS = (FileContent, Tree)


def transforms_of(function: Any) -> tuple[dict[str, Transform | None], bool]:
    """Parameter name to what replaces its value in the key (`None`: nothing does), and whether files are read for it.

    Raises:
        CacheConfigurationError: an annotation that names a marker cannot be evaluated, or a marker cannot count there.
    """
    found: dict[str, Transform | None] = {}
    volatile = False
    for name, hint in _hints(function).items():
        markers = _markers_of(hint, name)
        if len(markers) > 1:
            raise CacheConfigurationError(f"parameter {name!r}: more than one marker ({', '.join(map(_shown, markers))})")
        for marker in markers:
            found[name] = None if isinstance(marker, Ignore) else marker
            volatile = volatile or isinstance(marker, _FILE_MARKERS)
    return found, volatile


def _markers_of(hint: Any, name: str) -> list[Any]:
    """Our markers on the hint itself, or on the members of a union such as `Annotated[Path, FileContent] | None`."""
    if hasattr(hint, "__metadata__"):
        _refuse_inside(hint.__origin__, name)
        return [_instance(item, name) for item in hint.__metadata__ if _is_marker(item)]
    if get_origin(hint) in (Union, UnionType):
        return [marker for member in get_args(hint) for marker in _markers_of(member, name)]
    _refuse_inside(hint, name)
    return []


def _refuse_inside(hint: Any, name: str) -> None:
    """A marker inside a container would be overlooked, and a file's content with it."""
    for part in get_args(hint):
        inside = [item for item in getattr(part, "__metadata__", ()) if _is_marker(item)]
        if inside:
            raise CacheConfigurationError(
                f"parameter {name!r}: {_shown(inside[0])} inside {hint!r} cannot count; use Annotated[..., By(function)]"
            )
        _refuse_inside(part, name)


def _is_marker(item: Any) -> bool:
    return isinstance(item, _MARKERS) or any(item is marker for marker in _MARKERS)


def _instance(item: Any, name: str) -> Any:
    if item is By:
        raise CacheConfigurationError(f"parameter {name!r}: By needs a function: By(lambda value: ...)")
    return item() if isinstance(item, type) else item


def _shown(marker: Any) -> str:
    return (marker if isinstance(marker, type) else type(marker)).__name__


def _hints(function: Any) -> dict[str, Any]:
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, "__annotations__"):
        function = getattr(type(function), "__call__", function)  # noqa: B004
    annotations = dict(getattr(function, "__annotations__", None) or {})
    annotations.pop("return", None)
    try:
        return get_type_hints(function, include_extras=True) if annotations else {}
    except Exception:  # a name that only type checkers see: one by one, so that the others keep their markers
        return {name: _evaluated(function, name, text) for name, text in annotations.items()}


def _evaluated(function: Any, name: str, annotation: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    frame: FrameType | None = sys._getframe()
    while frame is not None:  # the decorator runs in the function's or class's body whose names the annotation may use
        try:
            return eval(annotation, function.__globals__, dict(frame.f_locals))  # noqa: S307  the user's own source
        except Exception as error:
            failure = error
        frame = frame.f_back
    if _MARKER_NAMES.search(annotation):
        raise CacheConfigurationError(
            f"parameter {name!r}: the annotation {annotation!r} names a marker but cannot be evaluated ({failure}); "
            f"make its names importable at run time"
        ) from failure
    return None


_MARKER_NAMES = re.compile(r"\b(Ignore|By|FileContent|Tree)\b")
