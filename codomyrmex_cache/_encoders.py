"""Encoding rules for functions and modules, and for types of packages that are never imported from here.

A type is recognised by its module and name; what is then called are its instances' own public methods.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from codomyrmex_cache._code import code_parts
from codomyrmex_cache._encoding import Encoder, encode, encode_buffer, encode_into
from codomyrmex_cache._objects import SPECIAL, module_name, refuse, type_identity
from codomyrmex_cache.errors import UnkeyableError

__all__ = ["encode"]


def _tagged(parts: Callable[[Any], object]) -> Encoder:
    """By class and something simpler."""

    def encoder(value: object, out: bytearray, depth: int) -> None:
        out += b"@"
        encode_into(type_identity(type(value)), out, depth + 1)
        encode_into(parts(value), out, depth + 1)

    return encoder


# -- functions and modules -------------------------------------------------------------------------------------------


def _function(function: Any) -> object:
    """Name, code, defaults and what it closes over; of a wrapper also what it wraps."""
    cells = [_cell(cell, function) for cell in function.__closure__ or ()]
    name = (module_name(function.__module__), function.__qualname__)
    origin = function.__globals__.get("__name__")  # of a wrapper not what `__module__` says
    module: Any = sys.modules.get(str(origin))
    if not _is_wrapper(function) and (module is None or vars(module) is not function.__globals__):
        raise UnkeyableError(f"function {function.__qualname__} reads names of a module that is not imported")
    attributes = {key: item for key, item in function.__dict__.items() if not _is_wrapper(function) or key == "__wrapped__"}
    return (name, code_parts(function.__code__), function.__defaults__, function.__kwdefaults__, cells, attributes)


def _is_wrapper(function: Any) -> bool:
    """Whether it is the wrapper of one of our decorated functions, whose attributes are its control methods."""
    return bool(function.__code__.co_filename == "<codomyrmex_cache>")


def _lru_cached(function: Any) -> object:
    return (function.__wrapped__, function.cache_parameters())


def _module(module: Any) -> object:
    name = str(module.__name__)
    if sys.modules.get(name) is not module:
        raise UnkeyableError(f"module {name!r} is not the imported one of this name")
    return module_name(name)


def _cell(cell: Any, function: object) -> object:
    try:
        content = cell.cell_contents
    except ValueError:  # not assigned yet
        return ()
    return ("itself",) if content is function else (0, content)


def _builtin_function(function: Any) -> object:
    owner = function.__self__
    named = (str(function.__module__), function.__qualname__)
    return named if owner is None or type(owner).__name__ == "module" else (named, owner)


def _code(code: CodeType) -> object:
    return code_parts(code)


def _address(address: Any) -> object:
    """An address, and of an interface also its network."""
    return (int(address._ip), getattr(address, "scope_id", None), getattr(address, "network", None))


def _pytz(zone: Any, out: bytearray, depth: int) -> None:
    """By name and offset: its class is made anew in each process."""
    out += b"@"
    encode_into(("pytz", zone.__reduce__()[1]), out, depth + 1)


def _zone_key(zone: Any) -> str:
    if zone.key is None:
        raise UnkeyableError("a ZoneInfo made from a file has no name")
    return str(zone.key)


# -- buffers ---------------------------------------------------------------------------------------------------------


def _array(value: Any, out: bytearray, depth: int) -> None:
    out += b"@"
    encode_into((type_identity(type(value)), value.typecode), out, depth + 1)
    encode_buffer(value, len(value) * value.itemsize, out)


def _memoryview(value: memoryview, out: bytearray, depth: int) -> None:
    out += b"@"
    encode_into(("memoryview", value.format, value.shape), out, depth + 1)
    encode_buffer(value if value.c_contiguous else value.tobytes(), value.nbytes, out)


def _ndarray(value: Any, out: bytearray, depth: int) -> None:
    """By dtype, shape and content in C order; objects one by one, structured dtypes field by field (not their padding)."""
    kind, dtype = type(value), value.dtype
    out += b"@"
    encode_into(type_identity(kind), out, depth + 1)
    if kind.__name__ != "ndarray":  # masks, matrices: a subclass's own state beside the plain array
        if kind.__name__ != "memmap":  # its state is the open file
            encode_into(vars(value), out, depth + 1)
        value = value.view(next(base for base in kind.__mro__ if base.__name__ == "ndarray"))
    name = dtype.name if dtype.kind in "VT" else ""  # types of other packages (bfloat16) share their `str`
    encode_into((dtype.str, name, value.shape), out, depth + 1)
    if dtype.names is not None:
        encode_into([(name, dtype.fields[name][2:], value[name]) for name in dtype.names], out, depth + 1)  # with titles
    elif dtype.hasobject:
        encode_into(value.ravel().tolist(), out, depth + 1)
    elif value.nbytes:
        plain = value if value.flags.c_contiguous else value.copy(order="C")
        encode_buffer(plain.reshape(-1).view("u1"), value.nbytes, out)


def _numpy_scalar(value: Any) -> object:
    return value.__array__()


# -- frames ----------------------------------------------------------------------------------------------------------


def _is_numpy(dtype: object) -> bool:
    return type(dtype).__module__.partition(".")[0] == "numpy"


def _pandas_values(values: Any) -> object:
    """The content of an extension array or a plain one."""
    dtype = values.dtype
    if _is_numpy(dtype):
        return values.to_numpy()
    name = (type_identity(type(dtype)), str(dtype))
    if hasattr(dtype, "categories"):
        return (name, dtype.ordered, dtype.categories, values.codes)
    return (name, list(values))


def _pandas_index(index: Any) -> object:
    if hasattr(index, "levels"):
        content: object = (list(index.names), list(index.levels), [list(codes) for codes in index.codes])
    elif hasattr(index, "start"):
        content = (index.name, index.start, index.stop, index.step)
    else:
        content = (index.name, getattr(index, "freq", None), _pandas_values(index.array))
    return (
        content,
        {name: item for name, item in vars(index).items() if name[:1] != "_" and name not in index._accessors | {"sortorder"}},
    )


def _series(series: Any) -> object:
    return (
        series.name,
        series.index,
        _pandas_values(series.array),
        series.attrs,
        series.flags.allows_duplicate_labels,
        _own_metadata(series, _SERIES),
    )


def _frame(frame: Any) -> object:
    columns = [_pandas_values(frame.iloc[:, place].array) for place in range(frame.shape[1])]
    return (frame.columns, frame.index, columns, frame.attrs, frame.flags.allows_duplicate_labels, _own_metadata(frame, _FRAME))


def _own_metadata(value: Any, ours: frozenset[str]) -> dict[str, object]:
    """What subclasses (geopandas) declare as theirs, and what somebody set on the object."""
    declared = {name: getattr(value, name, None) for name in value._metadata}
    return declared | _set_by_others(value, ours | value._accessors)  # older pandas keeps `series.str` in the object


def _set_by_others(value: Any, ours: frozenset[str]) -> dict[str, object]:
    return {name: item for name, item in vars(value).items() if name not in ours}


_FRAME = frozenset({"_mgr", "_item_cache", "_attrs", "_flags", "_is_copy"})
_SERIES = _FRAME | {"_name", "_index", "_cacher", "_cache"}
_POLARS = frozenset({"_df", "_s"})
"""Attributes in which frames keep what the rules tell by other means."""


def _polars_series(series: Any) -> object:
    return (series.name, str(series.dtype), _polars_content(series), _set_by_others(series, _POLARS))


def _polars_content(series: Any) -> object:
    """Numbers without gaps by their buffer; moments by their physical form, which keeps nanoseconds; others by value.

    Nested ones part by part.  Categories never by their physical form: it is the order in which this process met them.
    """
    dtype = series.dtype
    if str(dtype) in _NUMPY_NUMBERS and series.null_count() == 0:
        return series.to_numpy()
    if dtype.is_temporal():
        return series.to_physical().to_list()
    if not dtype.is_nested():
        return series.to_list()
    missing = series.is_null().to_list()
    if hasattr(dtype, "fields"):
        return (missing, [_polars_content(series.struct.field(name)) for name in series.struct.fields])
    lengths = None if hasattr(dtype, "shape") else series.list.len().to_list()  # an array's is in its dtype
    return (missing, lengths, _polars_content(series.explode()))


_NUMPY_NUMBERS = frozenset(
    {"Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64"}
)  # fmt: skip


def _polars_frame(frame: Any) -> object:
    return (frame.height, [_polars_series(series) for series in frame.get_columns()], _set_by_others(frame, _POLARS))


_RULES: dict[tuple[str, str], Encoder] = {
    ("builtins", "function"): _tagged(_function),
    ("builtins", "builtin_function_or_method"): _tagged(_builtin_function),
    ("builtins", "method"): _tagged(lambda method: (method.__func__, method.__self__)),
    ("builtins", "module"): _tagged(_module),
    ("functools", "_lru_cache_wrapper"): _tagged(_lru_cached),
    ("builtins", "code"): _tagged(_code),
    ("builtins", "memoryview"): _memoryview,
    ("array", "array"): _array,
    ("ipaddress", "_BaseAddress"): _tagged(_address),
    ("ipaddress", "_BaseNetwork"): _tagged(lambda network: (network.network_address, network.prefixlen)),
    ("zoneinfo", "ZoneInfo"): _tagged(_zone_key),
    ("pytz", "BaseTzInfo"): _pytz,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "generic"): _tagged(_numpy_scalar),
    ("pandas", "Index"): _tagged(_pandas_index),
    ("pandas", "Series"): _tagged(_series),
    ("pandas", "DataFrame"): _tagged(_frame),
    ("polars", "Series"): _tagged(_polars_series),
    ("polars", "DataFrame"): _tagged(_polars_frame),
    ("polars", "LazyFrame"): refuse,
}
"""By top-level module and class name."""

SPECIAL.update(_RULES)  # here and not there, so that imports go one way
