"""Exceptions taken apart and raised again."""

from __future__ import annotations

import json
import traceback

import pytest

from codomyrmex_cache._raising import own_copy, retold, told
from codomyrmex_cache.errors import CacheCodecError


class WithFieldsError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class DerivedError(WithFieldsError):
    pass


class SlottedError(Exception):
    __slots__ = ("hidden",)


def _json_error() -> json.JSONDecodeError:
    try:
        json.loads("{")
    except json.JSONDecodeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), DerivedError(7, "seven"), FileNotFoundError(2, "none", "file"), StopIteration(3),
     UnicodeDecodeError("utf8", b"x", 0, 1, "reason"), SyntaxError("bad", ("f", 1, 2, "text")), _json_error()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_exception_comes_back_whole(error: Exception) -> None:
    for twin in (retold(told(error), [Exception]), own_copy(error)):
        assert twin is not error
        assert type(twin) is type(error)
        assert (twin.args, str(twin), vars(twin)) == (error.args, str(error), vars(error))
        assert twin.__traceback__ is None


def test_only_classes_that_were_named_are_raised_again() -> None:
    with pytest.raises(CacheCodecError):
        retold(told(DerivedError(1, "x")), [KeyError])
    assert type(retold(told(DerivedError(1, "x")), [WithFieldsError])) is DerivedError


@pytest.mark.parametrize("error", [SlottedError("x"), ImportError("x", name="module")])
def test_what_would_not_come_out_whole_is_not_taken_apart(error: Exception) -> None:
    with pytest.raises(CacheCodecError):
        told(error)
    assert own_copy(error) is error


def test_a_copy_keeps_cause_and_notes_and_leaves_the_traceback() -> None:
    try:
        try:
            raise OSError("cause")
        except OSError as cause:
            raise KeyError("x") from cause
    except KeyError as raised:
        error = raised
    error.add_note("a note")
    twin = own_copy(error)
    twin.add_note("its own")
    assert error.__notes__ == ["a note"]
    assert isinstance(twin.__cause__, OSError)
    assert "a note" in "".join(traceback.format_exception(twin))


@pytest.mark.parametrize(
    "form", [None, (), ("builtins", "KeyError"), ("builtins", "KeyError", (), None, 1), ("os", "system", (), {})]
)
def test_another_form_is_a_codec_error(form: object) -> None:
    with pytest.raises(CacheCodecError):
        retold(form, [Exception])
