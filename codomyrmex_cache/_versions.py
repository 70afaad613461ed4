"""`version="code"` and `depends=`: what a result depends on beside the arguments.

What is followed from a function: the names it reads from its module and the attributes it takes from them, its closure, and
for project code so on recursively.  Functions and classes count by their code, plain values by value, modules that are
used whole by their functions and classes, installed packages by their version, the standard library by Python's.

What cannot be seen: names built at run time (`getattr(module, name)`, `globals()[name]`, `importlib`), what a method call
reaches through an object's attributes, code in C, and data read from outside (declare it with `depends=`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from codomyrmex_cache._code import code_parts, loaded_names
from codomyrmex_cache._encoders import encode
from codomyrmex_cache._files import file_digest, tree_digest
from codomyrmex_cache._objects import module_name
from codomyrmex_cache.errors import CacheConfigurationError, UnkeyableError

__all__ = ["Code", "Env", "File", "Package", "dependency"]


class File:
    """A file, or the files that a glob selects, by content: `depends=[File("prompts/*.md")]`.

    A relative path starts at the working folder.
    """

    def __init__(self, glob: str | os.PathLike[str]) -> None:
        self.glob = os.fspath(glob)

    def __call__(self) -> object:
        path = Path(self.glob)
        if path.is_file():
            return (self.glob, file_digest(path))
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        relative = str(path.relative_to(path.anchor)) if path.is_absolute() else self.glob
        return (self.glob, tree_digest(anchor, relative))


class Env:
    """An environment variable, by its value at the time of the call: `depends=[Env("MODEL")]`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> object:
        return (self.name, os.environ.get(self.name))


class Package:
    """An installed distribution, by its version: `depends=[Package("tree-sitter")]`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = _distribution_version(name)
        if self.version is None:
            raise CacheConfigurationError(f"Package({name!r}): no such distribution is installed")

    def __call__(self) -> object:
        return (self.name, self.version)


def dependency(declared: Any) -> Callable[[], bytes]:
    """The encoding, at the time of a call, of one element of `depends=`."""
    if isinstance(declared, (File, Env, Package)):
        return lambda: encode(declared())
    if isinstance(declared, (FunctionType, MethodType, type)):
        return Code(declared).part
    if isinstance(declared, ModuleType):
        return Code(declared).part
    return lambda: encode(declared)


class Code:
    """The code of a function and of the project code it reaches, as one part of a key.

    The walk is done once.  At each call the names it went through are looked up again: if one leads to another object, or a
    container it holds has changed, the walk is repeated.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._encoded: bytes | None = None
        self._watched: list[tuple[Callable[[], object], object]] = []
        self._containers: list[object] = []

    def part(self) -> bytes:
        """The encoding of everything reached, now.

        Raises:
            UnkeyableError: a constant that the code reads has no exact encoding.
        """
        if self._encoded is None or self._moved():
            walk = _Walk()
            walk.visit(self._root, self._root)
            self._watched, self._containers = walk.watched, walk.containers
            self._encoded = encode(walk.parts)
        return encode((self._encoded, self._containers))

    def _moved(self) -> bool:
        return any(_attempt(look) is not seen for look, seen in self._watched)


_ABSENT = object()


def _attempt(look: Callable[[], object]) -> object:
    try:
        return look()
    except Exception:  # a name that has gone is a change like any other
        return _ABSENT


class _Walk:
    """One pass over what a function reaches."""

    def __init__(self) -> None:
        self.parts: list[object] = []
        self.watched: list[tuple[Callable[[], object], object]] = []
        self.containers: list[object] = []
        self._seen: dict[int, object] = {}  # by identity, and kept alive, so that no identity is used twice

    def visit(self, value: Any, root: object = None) -> None:
        """Take in one object that project code refers to."""
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, (staticmethod, classmethod, MethodType)):
            self.visit(value.__func__)
        elif isinstance(value, property):
            for accessor in (value.fget, value.fset, value.fdel):
                self.visit(accessor)
        elif isinstance(value, partial):
            self.visit_all([value.func, value.args, value.keywords])
        elif isinstance(value, (FunctionType, type, ModuleType, BuiltinFunctionType)):
            self._visit_code(value)
        elif isinstance(value, (dict, list, tuple, set, frozenset)):
            self._visit_container(value)
        elif value is root:  # a callable object: its state is in the key already
            self.visit(type(value))
        else:
            self._visit_value(value)

    def visit_all(self, values: Iterable[Any]) -> None:
        """Take in several."""
        for value in values:
            self.visit(value)

    def _visit_code(self, value: Any) -> None:
        module = value.__name__ if isinstance(value, ModuleType) else value.__module__
        origin = _origin(str(module))
        name = (module_name(str(module)), getattr(value, "__qualname__", ""))
        if origin != "project":
            self.parts.append((name, origin))
        elif isinstance(value, ModuleType):
            self.parts.append(name)
            self.visit_all(item for item in vars(value).values() if getattr(item, "__module__", None) == value.__name__)
        elif isinstance(value, type):
            self.parts.append(name)
            self.visit_all(value.__bases__)
            self.visit_all(item for key, item in sorted(vars(value).items()) if key not in _CLASS_FURNITURE)
        elif isinstance(value, FunctionType):
            self._visit_function(value, name)

    def _visit_function(self, function: FunctionType, name: tuple[str, str]) -> None:
        wrapped = function.__dict__.get("__wrapped__")
        if wrapped is not None:
            self.visit(wrapped)
        if str(function.__code__.co_filename) == "<codomyrmex_cache>":
            return  # our own wrapper says nothing that what it wraps does not
        self.parts.append((name, code_parts(function.__code__)))
        self.visit_all([function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            content = _attempt(lambda cell=cell: cell.cell_contents)  # type: ignore[misc]
            if content is not _ABSENT:
                self.watched.append((lambda cell=cell: cell.cell_contents, content))  # type: ignore[misc]
                self.visit(content)
        for path in sorted(loaded_names(function.__code__)):
            self._visit_path(function.__globals__, path)

    def _visit_path(self, names: dict[str, Any], path: tuple[str, ...]) -> None:
        """Follow `module.module.name` as far as it leads through modules, and take in what is there."""
        if path[0] not in names:
            return  # a builtin, which goes with Python's version
        value = names[path[0]]
        self.watched.append((partial(names.__getitem__, path[0]), value))
        for attribute in path[1:]:
            if not isinstance(value, ModuleType) or not hasattr(value, attribute):
                break
            owner, value = value, getattr(value, attribute)
            self.watched.append((partial(getattr, owner, attribute), value))
        self.visit(value)

    def _visit_container(self, container: Any) -> None:
        items = _members(container)
        if any(isinstance(item, (FunctionType, type, MethodType, partial, BuiltinFunctionType)) for item in items):
            self.parts.append(sorted(map(str, container)) if isinstance(container, dict) else len(container))
            self.watched.append((partial(_holds, container, items), True))
        else:
            self._visit_value(container)
        self.visit_all(item for item in items if not isinstance(item, (str, bytes, int, float, type(None))))

    def _visit_value(self, value: Any) -> None:
        """A constant by value; mutable ones are encoded again at each call."""
        try:
            encoded = encode(value)
        except UnkeyableError:  # a client, a lock, a logger with handlers: by its class
            self.visit(type(value))
            return
        if isinstance(value, (dict, list, set, bytearray)):
            self.containers.append(value)
        else:
            self.parts.append(encoded)


_CLASS_FURNITURE = frozenset({"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__"})


def _members(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else list(container)


def _holds(container: Any, members: list[Any]) -> bool:
    """Whether the container still has these very members."""
    now = _members(container)
    return len(now) == len(members) and all(one is other for one, other in zip(now, members, strict=True))


@cache
def _origin(module: str) -> str:
    """ "project", or the version of the distribution or Python that the module belongs to."""
    top = module.partition(".")[0]
    if top == "__main__":
        return "project"
    if top in sys.stdlib_module_names:
        return f"python {sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
    found = sys.modules.get(module) or sys.modules.get(top)
    file = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), None)
    if file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts):
        return "project" if top != "codomyrmex_cache" else "codomyrmex_cache"
    return f"{top} {_package_version(top)}"


def _distribution_version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _package_version(top: str) -> str:
    """The version of the distribution that installed this top-level package."""
    from importlib.metadata import packages_distributions

    direct = _distribution_version(top)
    if direct is not None:
        return direct
    names = packages_distributions().get(top, ())
    return ", ".join(sorted(f"{name} {_distribution_version(name)}" for name in names))
