"""NumPy arrays and scalars, by their memory; NumPy is never imported here, only met.

An array is the description of its dtype, its shape, its order in memory, whether it may be written to, and its memory.
Object dtypes, dtypes of other packages and those that do not come back the same from their description are left to pickle.
"""

from __future__ import annotations

import sys
from math import prod
from typing import Any

from codomyrmex_cache._tagged import Memory, Recipe
from codomyrmex_cache.errors import CacheCodecError

__all__ = ["array_recipe", "concrete_scalars"]

_KINDS = "biufcmMSUV"
"""Booleans, numbers, time spans and times, fixed-length bytes and text, structures: what is nothing but its memory."""


def _numpy() -> Any:
    return sys.modules.get("numpy")


def array_recipe(kind: type) -> Recipe | None:
    """How to rebuild arrays, or scalars of this type; `None` for any other class."""
    numpy = _numpy()
    if numpy is None:
        return None
    if kind is numpy.ndarray:
        return Recipe("numpy:ndarray", "", _take_array, _make_array)
    if kind in concrete_scalars(kind):
        name = f"numpy:{kind.__name__}"
        return Recipe(name, "", _take_scalar, lambda parts: _make_scalar(parts, kind))
    return None


def concrete_scalars(kind: type) -> list[type]:
    """NumPy's scalar types that are `kind` or, if it is an abstract one like `numpy.floating`, are below it."""
    numpy = _numpy()
    if numpy is None or not issubclass(kind, numpy.generic):
        return []
    children: list[type] = type.__subclasses__(kind)
    below = [kind, *(found for child in children for found in concrete_scalars(child))]
    numbers = (numpy.bool_, numpy.number, numpy.datetime64)
    return [found for found in below if found in set(numpy.sctypeDict.values()) and issubclass(found, numbers)]


# -- dtypes ----------------------------------------------------------------------------------------------------------


def _described(dtype: Any) -> Any:
    """A text, or a list of fields, from which NumPy makes the very same dtype.

    Raises:
        CacheCodecError: there is none.
    """
    described = dtype.str if dtype.names is None and dtype.subdtype is None else dtype.descr
    if not _is_memory_only(dtype) or not _is_same(_numpy().dtype(described), dtype):
        raise CacheCodecError(f"numpy dtype {dtype!s:.200} is not plain data")
    return described


def _is_memory_only(dtype: Any) -> bool:
    """Also without a size of its own, which would say nothing about how many items there are, and without `long double`,
    whose bits mean something else on another processor."""
    if dtype.subdtype is not None:
        return _is_memory_only(dtype.subdtype[0])
    if dtype.names is not None:
        return bool(dtype.itemsize) and all(_is_memory_only(dtype.fields[name][0]) for name in dtype.names)
    return dtype.kind in _KINDS and dtype.itemsize > 0 and dtype.char not in "gG" and not dtype.hasobject


def _is_same(one: Any, other: Any) -> bool:
    """Also where `==` sees no difference: `long` and `long long`, alignment, metadata."""
    if one != other or one.char != other.char or type(one) is not type(other) or one.isalignedstruct != other.isalignedstruct:
        return False
    if one.metadata is not None or other.metadata is not None:
        return False
    if one.subdtype is not None:
        return _is_same(one.subdtype[0], other.subdtype[0])
    return one.names is None or all(_is_same(one.fields[name][0], other.fields[name][0]) for name in one.names)


def _dtype(described: Any) -> Any:
    dtype = _numpy().dtype(described)
    if _described(dtype) != described:
        raise CacheCodecError("not a safe payload: a dtype is not described as it would be")
    return dtype


# -- arrays and scalars ----------------------------------------------------------------------------------------------


def _take_array(array: Any) -> list[Any]:
    described = _described(array.dtype)
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    form = ("F" if turned else "C") + ("w" if array.flags.writeable else "r")
    return [described, form, Memory(_flat(array.T if turned else array)), *array.shape]


def _flat(array: Any) -> memoryview | bytes:
    if array.size == 0:
        return b""
    whole = array if array.flags.c_contiguous else _numpy().ascontiguousarray(array)
    return memoryview(whole.reshape(-1).view("u1")).toreadonly()


def _make_array(parts: list[Any]) -> Any:
    described, form, memory, *shape = parts
    dtype = _dtype(described)
    if form not in ("Cw", "Cr", "Fw", "Fr") or any(type(size) is not int or size < 0 for size in shape):
        raise CacheCodecError("not a safe payload: an array without a shape")
    if type(memory) not in (bytearray, memoryview) or prod(shape) * dtype.itemsize != len(memory):
        raise CacheCodecError("not a safe payload: an array of another size than its memory")
    array = _numpy().ndarray(tuple(shape), dtype, buffer=memory, order=form[0])
    if not array.flags.aligned:  # the frame began at an odd address; what is written in C may count on an even one
        array = array.copy(order="K")
    if form[1] == "r":
        array.setflags(write=False)
    return array


def _take_scalar(value: Any) -> list[Any]:
    parts = [_described(value.dtype), value.tobytes()]
    _make_scalar(parts, type(value))
    return parts


def _make_scalar(parts: list[Any], kind: type) -> Any:
    described, content = parts
    dtype = _dtype(described)
    value = _numpy().ndarray((), dtype, buffer=content)[()]
    if type(value) is not kind or dtype.itemsize != len(content):
        raise CacheCodecError("not a safe payload: a number of another type")
    return value
