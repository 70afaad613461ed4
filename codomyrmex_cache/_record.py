"""Records: frozen dataclasses for whoever looks, at a fifth of the time that it takes to define one.

`import dataclasses` brings `inspect`, `ast`, `dis` and `tokenize` along, and then each class compiles eight methods and is
looked over by `inspect`: 18 of the 80 ms in which a new process came to its first hit.  Here only `__init__` is compiled, and
what `dataclasses.fields` and its like ask for is made when they ask.
"""

from __future__ import annotations

from reprlib import recursive_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from dataclasses import replace
    from typing import Any

__all__ = ["Fields", "record", "replace"]


class Fields:
    """`__dataclass_fields__`, made when somebody asks."""

    def __init__(self, annotations: dict[str, Any], defaults: dict[str, Any], kw_only: bool) -> None:
        self._content = annotations, defaults, kw_only

    def __get__(self, instance: object, kind: type) -> dict[str, Any]:
        from dataclasses import field, make_dataclass

        annotations, defaults, kw_only = self._content

        def declared(name: str) -> Any:
            if name not in defaults:
                return field()
            default = defaults[name]  # a read-only mapping is no good default for `dataclasses`, as it has no hash
            return field(default=default) if type(default).__hash__ is not None else field(default_factory=lambda: default)

        columns = [(name, hint, declared(name)) for name, hint in annotations.items()]
        made: Any = make_dataclass(kind.__name__, columns, kw_only=kw_only)
        fields: dict[str, Any] = made.__dataclass_fields__
        return fields


class _Parameters:
    """`__dataclass_params__`: what the decorator was told."""

    init = repr = eq = frozen = match_args = slots = True
    order = unsafe_hash = weakref_slot = False

    def __init__(self, kw_only: bool) -> None:
        self.kw_only = kw_only


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__record__])


@recursive_repr()
def _repr(self: Any) -> str:
    content = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__record__)
    return f"{type(self).__qualname__}({content})"


def _eq(self: Any, other: Any) -> bool:
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse(self: Any, name: str, *value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return list(_values(self))


def _setstate(self: Any, state: list[Any]) -> None:
    for name, value in zip(self.__record__, state, strict=True):
        object.__setattr__(self, name, value)


def _replace(item: Any, /, **changes: Any) -> Any:
    if "__record__" not in vars(type(item)):  # a class that somebody derived
        from dataclasses import replace

        return replace(item, **changes)
    return type(item)(**{name: getattr(item, name) for name in item.__record__} | changes)


_METHODS = {
    "__repr__": _repr, "__eq__": _eq, "__hash__": _hash, "__setattr__": _refuse, "__delattr__": _refuse,
    "__getstate__": _getstate, "__setstate__": _setstate, "__replace__": _replace,
}  # fmt: skip


def _init(names: tuple[str, ...], defaults: dict[str, Any], kw_only: bool, then: bool) -> Any:
    declared = [f"{name}=_default_{name}" if name in defaults else name for name in names]
    lines = [f"_set(self, {name!r}, {name})" for name in names] + ["self.__post_init__()"] * then
    source = f"def __init__(self, {'*, ' * kw_only}{', '.join(declared)}):\n " + "\n ".join(lines)
    scope = {f"_default_{name}": value for name, value in defaults.items()} | {"_set": object.__setattr__}
    exec(source, scope)  # noqa: S102  of our own classes only
    return scope["__init__"]


def _record(*, frozen: bool, slots: bool, kw_only: bool = False) -> Any:
    assert frozen, "records do not change"
    assert slots, "records have slots"

    def make(kind: Any) -> Any:
        annotations: dict[str, Any] = dict(kind.__annotations__)
        names, content = tuple(annotations), dict(vars(kind))
        defaults = {name: content.pop(name) for name in names if name in content}
        for made in ("__dict__", "__weakref__"):
            content.pop(made, None)
        init = _init(names, defaults, kw_only, "__post_init__" in content)
        init.__qualname__, init.__module__ = f"{kind.__qualname__}.__init__", kind.__module__
        init.__annotations__ = {**annotations, "return": None}
        content = {
            **_METHODS, **content,
            "__slots__": names, "__record__": names, "__match_args__": () if kw_only else names, "__init__": init,
            "__dataclass_fields__": Fields(annotations, defaults, kw_only), "__dataclass_params__": _Parameters(kw_only),
        }  # fmt: skip
        made = type(kind)(kind.__name__, kind.__bases__, content)
        made.__qualname__ = kind.__qualname__
        return made

    return make


if not TYPE_CHECKING:
    record, replace = _record, _replace
