"""Code as a value: what a function does, without where it stands in its file.

Bytecode has no comments, no layout and no decorator lines.  Docstrings leave because constants count only where an
instruction loads them.  Different Python minor versions compile differently, so code from one is another code in the next.
"""

from __future__ import annotations

import dis
from types import CodeType
from typing import Any

__all__ = ["code_parts", "imported_modules", "loaded_names", "rebound_names"]


def code_parts(code: CodeType) -> tuple[object, ...]:
    """The code in encodable form."""
    arguments = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    return (
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
        code.co_varnames[:arguments],
        [_instruction(item) for item in dis.get_instructions(code)],
        code.co_exceptiontable,
    )


def _instruction(item: dis.Instruction) -> object:
    value = item.argval
    if isinstance(value, CodeType):
        return (item.opname, value.co_name, code_parts(value))
    if item.opname in ("COMPARE_OP", "BINARY_OP", "CONTAINS_OP", "IS_OP", "CALL_INTRINSIC_1", "CALL_INTRINSIC_2"):
        return (item.opname, item.arg)
    return (item.opname, value)


def rebound_names(code: CodeType) -> set[str]:
    """The closure variables that the code itself assigns (`nonlocal count; count += 1`)."""
    stored = {item.argval for item in dis.get_instructions(code) if item.opname in ("STORE_DEREF", "DELETE_DEREF")}
    inner = (item for item in code.co_consts if isinstance(item, CodeType))
    return stored.union(*(rebound_names(item) & set(code.co_freevars) for item in inner))


_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")


def loaded_names(code: CodeType) -> set[tuple[str, ...]]:
    """The global names that the code reads, each with the attributes taken from it in the same expression.

    `helper(x)` is `("helper",)` and `package.module.helper(x)` is `("package", "module", "helper")`.
    """
    found: set[tuple[str, ...]] = set()
    path: tuple[str, ...] = ()
    for item in dis.get_instructions(code):
        if item.opname == "EXTENDED_ARG":
            continue
        if path and item.opname in _ATTRIBUTE:
            path = (*path, _name(item.argval))
            continue
        if path:
            found.add(path)
        path = (_name(item.argval),) if item.opname in _GLOBAL else ()
    if path:
        found.add(path)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= loaded_names(constant)
    return found


def imported_modules(code: CodeType) -> set[str]:
    """The modules, and the names from modules, that the code imports when it runs; relative ones with their dots."""
    found: set[str] = set()
    names: set[str] = set()
    module, constants = "", [0, None]
    for item in dis.get_instructions(code):
        if item.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            constants = [constants[-1], item.argval]
        elif item.opname == "IMPORT_NAME":
            level = constants[0] if isinstance(constants[0], int) else 0
            module = "." * level + str(item.argval)
            found.add(module)
        elif item.opname == "IMPORT_FROM":
            names.add(f"{module}{'' if module.endswith('.') else '.'}{item.argval}")
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return found.union(names, *(imported_modules(constant) for constant in inner))


def _name(value: Any) -> str:
    return str(value)
