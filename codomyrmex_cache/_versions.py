"""`version="code"` and `depends=`: what a result depends on beside the arguments.

What is followed from a function: the names it reads from its module and the attributes it takes from them, its closure, and
for project code so on recursively.  Functions and classes count by their code, plain values by value, modules that are
used whole by their functions and classes, installed packages by their version, the standard library by Python's.

What cannot be seen: names built at run time (`getattr(module, name)`, `globals()[name]`, `importlib`), what a method call
reaches through an object's attributes, the options of pydantic's validators (their code is seen), code in C, and data
read from outside (declare it with `depends=`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache, cached_property, partial
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

from codomyrmex_cache._code import code_parts, imported_modules, loaded_names
from codomyrmex_cache._encoders import encode
from codomyrmex_cache._files import file_digest, tree_digest
from codomyrmex_cache._isolation import is_immutable
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
        if path.is_dir():
            return (self.glob, tree_digest(path, "**/*"))
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

    The walk is done once.  At each call what it went through is looked up again: if a name leads to another object, or a
    container has changed, the walk is repeated.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._walked: tuple[list[tuple[Callable[[], object], object]], bytes] | None = None  # replaced as a whole

    def part(self) -> bytes:
        """The encoding of everything reached, now."""
        walked = self._walked
        if walked is None or any(_attempt(look) is not seen for look, seen in walked[0]):
            walk = _Walk()
            walk.visit("", self._root, root=True)
            walked = self._walked = (walk.watched, encode(walk.parts))
        return walked[1]


_ABSENT = object()


def _attempt(look: Callable[[], object]) -> object:
    try:
        return look()
    except Exception:  # a name that has gone is a change like any other
        return _ABSENT


_PLAIN = frozenset({type(None), bool, str, bytes, int, float, complex})
_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})


class _Walk:
    """One pass over what a function reaches.  Each thing is written down under the name that led to it."""

    def __init__(self) -> None:
        self.parts: list[object] = []
        self.watched: list[tuple[Callable[[], object], object]] = []
        self._seen: dict[int, tuple[int, object]] = {}  # by identity; kept alive, so that no identity is used twice

    def visit(self, label: str, value: Any, *, root: bool = False) -> None:
        """Take in one object that project code refers to under this name."""
        if type(value) in _PLAIN:
            self._visit_value(label, value)
            return
        number, _ = self._seen.get(id(value), (None, None))
        if number is not None:
            self.parts.append((label, "again", number))
            return
        self._seen[id(value)] = (len(self._seen), value)
        if isinstance(value, (staticmethod, classmethod)):
            self.visit(label, value.__func__)
        elif isinstance(value, MethodType):
            self.visit(f"{label}()", value.__func__)
            self.visit(f"{label}.self", value.__self__)
        elif isinstance(value, property):
            for name in ("fget", "fset", "fdel"):
                self.visit(f"{label}.{name}", getattr(value, name))
        elif isinstance(value, partial):
            self.visit(label, (value.func, value.args, value.keywords))
        elif isinstance(value, cached_property):
            self.visit(label, value.func)
        elif isinstance(value, (FunctionType, type, ModuleType, BuiltinFunctionType)):
            self._visit_code(label, value)
        elif isinstance(value, (dict, list, tuple, set, frozenset)):
            if type(value) not in _CONTAINERS:
                self._visit_object(label, value, by_value=True)
            self._visit_container(label, value)
        else:
            self._visit_object(label, value, by_value=not root)

    def _visit_code(self, label: str, value: Any) -> None:
        module = value.__name__ if isinstance(value, ModuleType) else value.__module__
        origin = _origin(str(module))
        name = (module_name(str(module)), getattr(value, "__qualname__", ""))
        self.parts.append((label, name, origin))
        owner = getattr(value, "__self__", None)
        if isinstance(value, BuiltinFunctionType) and not isinstance(owner, (ModuleType, type, type(None))):
            self.visit(f"{label}.self", owner)
        if origin != "project":
            return
        if isinstance(value, ModuleType):
            members = {key: item for key, item in vars(value).items() if not key.startswith("__")}
            members = {key: item for key, item in members.items() if _belongs(item, value)}
            self._visit_members(label, value, members)
        elif isinstance(value, type):
            for place, base in enumerate(value.__bases__):
                self.visit(f"{label}.base{place}", base)
            members = {key: item for key, item in vars(value).items() if not _is_furniture(key)}
            self._visit_members(label, value, members)
        elif isinstance(value, FunctionType):
            self._visit_function(label, value)

    def _visit_members(self, label: str, owner: Any, members: dict[str, Any]) -> None:
        for key, item in sorted(members.items()):
            self.watched.append((partial(vars(owner).__getitem__, key), item))
            self.visit(f"{label}.{key}", item)

    def _visit_function(self, label: str, function: FunctionType) -> None:
        wrapped = function.__dict__.get("__wrapped__")
        if wrapped is not None:
            self.visit(f"{label}.wrapped", wrapped)
        registry = function.__dict__.get("registry")  # of functools.singledispatch
        if isinstance(registry, MappingProxyType):
            self.visit(f"{label}.registry", {describe_type(kind): item for kind, item in registry.items()})
        if function.__code__.co_filename == "<codomyrmex_cache>":
            return  # our own wrapper says nothing that what it wraps does not
        self.parts.append((label, code_parts(function.__code__)))
        self.watched.append((lambda: function.__code__, function.__code__))
        self.visit(f"{label}.defaults", function.__defaults__)
        self.visit(f"{label}.kwdefaults", function.__kwdefaults__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            look = partial(getattr, cell, "cell_contents")
            content = _attempt(look)
            if content is not _ABSENT:
                self.watched.append((look, content))
                self.visit(f"{label}.{name}", content)
        for path in sorted(loaded_names(function.__code__)):
            self._visit_path(function.__globals__, path)
        for name in sorted(imported_modules(function.__code__)):
            found = _imported(name, function.__globals__.get("__package__"))
            if found is not None:
                self.visit(name, found)

    def _visit_path(self, names: dict[str, Any], path: tuple[str, ...]) -> None:
        """Follow `module.module.name`, or `Class.name`, as far as it leads, and take in what is there."""
        look: Callable[[], object] = partial(names.get, path[0], _ABSENT)
        value = look()
        self.watched.append((look, value))
        if value is _ABSENT:
            return  # a builtin, which goes with Python's version, until the module has a name like it
        for attribute in path[1:]:
            if not isinstance(value, ModuleType) or not hasattr(value, attribute):
                break
            look = partial(getattr, value, attribute)
            value = look()
            self.watched.append((look, value))
        self.visit(".".join(path), value)

    def _visit_container(self, label: str, container: Any) -> None:
        """Members in order, under their keys or places; those of a set in the order of their encodings."""
        members = list(container.values() if isinstance(container, dict) else container)
        keys = list(container) if isinstance(container, dict) else range(len(members))
        if isinstance(container, (set, frozenset)):
            members = sorted(members, key=lambda item: (str(type(item)), getattr(item, "__qualname__", ""), _short(item)))
        self.parts.append((label, type(container).__name__, len(members)))
        if not isinstance(container, (tuple, frozenset)):
            self.watched.append((partial(_holds, container, list(keys), members), True))
        for key, item in zip(keys, members, strict=True):
            self.visit(f"{label}[{_short(key).hex() if not isinstance(key, int) else key}]", item)

    def _visit_object(self, label: str, value: Any, *, by_value: bool) -> None:
        """By class and state; where the state has no encoding (a client, a lock), by class."""
        self.visit(f"{label}.class", type(value))
        if by_value:
            self._visit_value(label, value)

    def _visit_value(self, label: str, value: Any) -> None:
        try:
            self.parts.append((label, encode(value)))
        except UnkeyableError:
            self.parts.append((label, "by class"))
            return
        if not is_immutable(value):
            before = encode(value)
            self.watched.append((lambda: _attempt(lambda: encode(value)) == before, True))


def _is_furniture(key: str) -> bool:
    """Whether a class attribute says where the class stands or is somebody's cache; of pydantic's, the fields count."""
    return key in _CLASS_FURNITURE or (key.startswith("__pydantic_") and key != "__pydantic_fields__")


def _belongs(item: Any, module: ModuleType) -> bool:
    """Whether a module's global is its own: what it defines, and its constants."""
    if isinstance(item, (FunctionType, type)):
        return item.__module__ == module.__name__
    return not isinstance(item, ModuleType)


def describe_type(kind: type) -> str:
    """The full name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _imported(name: str, package: str | None) -> object:
    """What `import name`, or `from parent import name`, in a function's body will give it; it is imported now."""
    try:
        name = resolve_name(name, package)
    except ImportError:
        return None
    parent, _, last = name.rpartition(".")
    try:
        return import_module(name)
    except Exception:  # not a module, or one that the function will fail to import
        return getattr(sys.modules.get(parent), last, None)


_CLASS_FURNITURE = frozenset(
    {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__"}
    | {"__static_attributes__", "__abstractmethods__", "_abc_impl", "__slotnames__", "__signature__", "__class_vars__"}
)  # fmt: skip


def _short(value: object) -> bytes:
    """Something to order and name members by."""
    try:
        return encode(value)
    except UnkeyableError:
        return str(getattr(value, "__qualname__", type(value).__qualname__)).encode("utf-8", "surrogatepass")


def _holds(container: Any, keys: list[Any], members: list[Any]) -> bool:
    """Whether the container still has these very members under these keys."""
    now = list(container.values() if isinstance(container, dict) else container)
    if isinstance(container, (set, frozenset)):
        return {id(item) for item in now} == {id(item) for item in members}
    if len(now) != len(members) or (isinstance(container, dict) and list(container) != keys):
        return False
    return all(one is other for one, other in zip(now, members, strict=True))


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
