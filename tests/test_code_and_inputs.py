"""What a result depends on beside its arguments' values: code, files, environment, scope; and what `explain` says of it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from codomyrmex_cache import By, CacheManager, FileContent, Ignore, _files, cached
from codomyrmex_cache.errors import CacheConfigurationError, UnkeyableError
from codomyrmex_cache.markers import Env, File, Package, Tree
from codomyrmex_cache.testing import FakeClock
from tests.conftest import Server
from tests.test_traps import Processes, outcome

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers


@pytest.fixture
def memo(manager: CacheManager, backend_name: str) -> Callable[..., Any]:
    """`cached` in one namespace, on each backend."""
    return functools.partial(cached, "inputs", backend=backend_name, manager=manager)


# -- version="code", from process to process -----------------------------------------------------------------------------

HEAD = """
import asyncio, dataclasses, enum, functools, typing
from codomyrmex_cache import cached
following = cached("code", version="code")
"""

CASES: dict[str, str] = {
    "itself": """
        @following
        def function(x):
            return x + EDIT
    """,
    "helper": """
        def helper(x):
            return x + EDIT
        @following
        def function(x):
            return helper(x)
    """,
    "helper_in_a_lambda": """
        def helper(x):
            return x + EDIT
        @following
        def function(x):
            return (lambda: [helper(x) for _ in range(1)])()
    """,
    "lambda_helper": """
        helper = lambda x: x + EDIT
        @following
        def function(x):
            return helper(x)
    """,
    "module_attribute": """
        import module_attribute_other as other
        @following
        def function(x):
            return other.helper(x)
        --- module_attribute_other
        def helper(x):
            return x + EDIT
    """,
    "package_attribute": """
        import package_attribute_other.inner
        @following
        def function(x):
            return package_attribute_other.inner.helper(x)
        --- package_attribute_other/__init__
        --- package_attribute_other/inner
        def helper(x):
            return x + EDIT
    """,
    "imported_name": """
        from imported_name_other import helper as renamed
        @following
        def function(x):
            return renamed(x)
        --- imported_name_other
        def helper(x):
            return x + EDIT
    """,
    "imported_in_the_body": """
        @following
        def function(x):
            from imported_in_the_body_other import helper
            return helper(x)
        --- imported_in_the_body_other
        def helper(x):
            return x + EDIT
    """,
    "module_imported_in_the_body": """
        @following
        def function(x):
            import module_imported_in_the_body_other as other
            return x + other.AMOUNT
        --- module_imported_in_the_body_other
        AMOUNT = EDIT
    """,
    "object_of_a_module_imported_in_the_body": """
        @following
        def function(x):
            import object_of_a_module_imported_in_the_body_other as other
            return x + other.AMOUNT
        --- object_of_a_module_imported_in_the_body_other
        from decimal import Decimal
        AMOUNT = Decimal(EDIT)
    """,
    "relative_import_in_the_body": """
        from relative_import_in_the_body_package.inner import function
        --- relative_import_in_the_body_package/__init__
        --- relative_import_in_the_body_package/other
        def helper(x):
            return x + EDIT
        --- relative_import_in_the_body_package/inner
        from codomyrmex_cache import cached
        @cached("code", version="code")
        def function(x):
            from . import other
            from .other import helper
            return other.helper(x) + helper(x)
    """,
    "behind_hundreds_of_names": f"""
        import behind_hundreds_of_names_other
        @following
        def function(x):
            if x is None:
                return [{", ".join(f"name{number}" for number in range(300))}]
            return x + behind_hundreds_of_names_other.AMOUNT
        --- behind_hundreds_of_names_other
        AMOUNT = EDIT
    """,
    "two_levels_deep": """
        from two_levels_deep_other import first
        @following
        def function(x):
            return first(x)
        --- two_levels_deep_other
        import two_levels_deep_another
        def first(x):
            return two_levels_deep_another.second(x)
        --- two_levels_deep_another
        def second(x):
            return x + EDIT
    """,
    "recursive_helpers": """
        def even(x):
            return x == 0 or odd(x - 1)
        def odd(x):
            return EDIT if x == 0 else even(x - 1)
        @following
        def function(x):
            return odd(x - 1)
    """,
    "table": """
        def helper(x):
            return x + EDIT
        table = {"a": helper, "b": abs}
        @following
        def function(x):
            return table["a"](x)
    """,
    "nested_table": """
        def helper(x):
            return x + EDIT
        table = {"a": [(helper, 1)], "b": {"c": abs}}
        @following
        def function(x):
            return table["a"][0][0](x)
    """,
    "swapped_table": """
        def add(x, y):
            return x + y
        def multiply(x, y):
            return x * y
        table = {"a": (add, multiply)[EDIT - 1], "b": (multiply, add)[EDIT - 1]}
        @following
        def function(x):
            return table["a"](x, 5) if x else add(x, 0) + multiply(x, 0)
    """,
    "swapped_keys": """
        def add(x):
            return x + 5
        def multiply(x):
            return x * 5
        table = {("a", "b")[EDIT - 1]: add, ("b", "a")[EDIT - 1]: multiply}
        @following
        def function(x):
            return table["a"](x)
    """,
    "set_of_classes": """
        class One:
            pass
        class Two:
            def method(self):
                return EDIT
        kinds = {One, Two, int}
        @following
        def function(x):
            return [kind().method() for kind in kinds if kind.__name__ == "Two"]
    """,
    "swapped_names": """
        def add(x, y):
            return x + y
        def multiply(x, y):
            return x * y
        one, two = (add, multiply) if EDIT == 1 else (multiply, add)
        @following
        def function(x):
            return one(x, 5) if x else add(x, 0) + multiply(x, 0) + two(x, 0)
    """,
    "method_of_a_class": """
        class Helper:
            def method(self, x):
                return x + EDIT
        @following
        def function(x):
            return Helper().method(x)
    """,
    "static_method": """
        class Helper:
            @staticmethod
            def method(x):
                return x + EDIT
        @following
        def function(x):
            return Helper.method(x)
    """,
    "class_method": """
        class Helper:
            @classmethod
            def method(cls, x):
                return x + EDIT
        @following
        def function(x):
            return Helper.method(x)
    """,
    "inherited_method": """
        class Base:
            def method(self, x):
                return x + EDIT
        class Helper(Base):
            pass
        @following
        def function(x):
            return Helper().method(x)
    """,
    "property": """
        class Helper:
            @property
            def value(self):
                return 1 + EDIT
        @following
        def function(x):
            return Helper().value
    """,
    "cached_property": """
        class Helper:
            @functools.cached_property
            def value(self):
                return 1 + EDIT
        @following
        def function(x):
            return Helper().value
    """,
    "class_constant": """
        class Helper:
            other = 0
            value = EDIT
        @following
        def function(x):
            return x + Helper.value
    """,
    "initializer": """
        @dataclasses.dataclass
        class Helper:
            value: int = EDIT
        @following
        def function(x):
            return x + Helper().value
    """,
    "annotation": """
        @dataclasses.dataclass
        class Helper:
            value: (int, float)[EDIT - 1] = 0
        @following
        def function(x):
            return dataclasses.fields(Helper)[0].type(x)
    """,
    "annotation_of_a_dict": """
        class Helper(typing.TypedDict):
            value: (int, float)[EDIT - 1]
        @following
        def function(x):
            return typing.get_type_hints(Helper)["value"](x)
    """,
    "partial_method": """
        class Helper:
            def add(self, amount, x):
                return x + amount
            method = functools.partialmethod(add, EDIT)
        @following
        def function(x):
            return Helper().method(x)
    """,
    "enum_method": """
        class Level(enum.IntEnum):
            LOW = 1
            def method(self, x):
                return x + EDIT
        level = Level.LOW
        @following
        def function(x):
            return level.method(x)
    """,
    "method_of_a_kind_of_dict": """
        class Table(dict):
            def method(self, x):
                return x + EDIT
        table = Table()
        @following
        def function(x):
            return table.method(x)
    """,
    "method_of_a_kind_of_tuple": """
        class Pair(typing.NamedTuple):
            one: int
            def method(self, x):
                return x + EDIT
        pair = Pair(1)
        @following
        def function(x):
            return pair.method(x)
    """,
    "method_of_a_kind_of_text": """
        class Text(str):
            def method(self, x):
                return x + EDIT
        text = Text("text")
        @following
        def function(x):
            return text.method(x)
    """,
    "attribute_of_a_kind_of_list": """
        class Items(list):
            pass
        items = Items()
        items.amount = EDIT
        @following
        def function(x):
            return x + items.amount
    """,
    "enum_value": """
        class Helper(enum.Enum):
            ONE = EDIT
        @following
        def function(x):
            return x + Helper.ONE.value
    """,
    "object_of_a_class": """
        class Helper:
            def method(self, x):
                return x + EDIT
        helper = Helper()
        @following
        def function(x):
            return helper.method(x)
    """,
    "state_of_an_object": """
        class Helper:
            def __init__(self, amount):
                self.amount = amount
            def method(self, x):
                return x + self.amount
        helper = Helper(EDIT)
        @following
        def function(x):
            return helper.method(x)
    """,
    "method_of_an_object": """
        class Helper:
            def __init__(self, amount):
                self.amount = amount
            def method(self, x):
                return x + self.amount
        helper = Helper(EDIT).method
        @following
        def function(x):
            return helper(x)
    """,
    "constant": """
        AMOUNT = EDIT
        @following
        def function(x):
            return x + AMOUNT
    """,
    "constant_of_another_module": """
        import constant_of_another_module_other as other
        @following
        def function(x):
            return x + other.AMOUNT
        --- constant_of_another_module_other
        AMOUNT = EDIT
    """,
    "constant_in_a_table": """
        AMOUNTS = {"a": [1, EDIT]}
        @following
        def function(x):
            return x + AMOUNTS["a"][1]
    """,
    "one_flag_of_three": """
        FIRST, SECOND, THIRD = True, EDIT == 1, False
        @following
        def function(x):
            return (FIRST, SECOND, THIRD)
    """,
    "one_number_of_three": """
        FIRST, SECOND, THIRD = 1, EDIT, 2
        @following
        def function(x):
            return (FIRST, SECOND, THIRD)
    """,
    "constant_of_a_helper": """
        AMOUNT = EDIT
        def helper(x):
            return x + AMOUNT
        @following
        def function(x):
            return helper(x)
    """,
    "default_of_a_helper": """
        def helper(x, amount=EDIT):
            return x + amount
        @following
        def function(x):
            return helper(x)
    """,
    "keyword_default_of_a_helper": """
        def helper(x, *, amount=EDIT):
            return x + amount
        @following
        def function(x):
            return helper(x)
    """,
    "closure": """
        def helper(x):
            return x + EDIT
        def make(inner):
            @following
            def function(x):
                return inner(x)
            return function
        function = make(helper)
    """,
    "closure_of_a_helper": """
        def make(amount):
            def helper(x):
                return x + amount
            return helper
        helper = make(EDIT)
        @following
        def function(x):
            return helper(x)
    """,
    "partial": """
        def add(amount, x):
            return x + amount
        helper = functools.partial(add, EDIT)
        @following
        def function(x):
            return helper(x)
    """,
    "wrapped_helper": """
        def passing(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)
            return wrapper
        @passing
        @passing
        def helper(x):
            return x + EDIT
        @following
        def function(x):
            return helper(x)
    """,
    "wrapper_of_a_helper": """
        def passing(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args) + EDIT
            return wrapper
        @passing
        def helper(x):
            return x
        @following
        def function(x):
            return helper(x)
    """,
    "lru_cached_helper": """
        @functools.lru_cache
        def helper(x):
            return x + EDIT
        @following
        def function(x):
            return helper(x)
    """,
    "memoized_helper": """
        @cached("helpers", version="code")
        def helper(x):
            return x + EDIT
        @following
        def function(x):
            return helper(x)
    """,
    "implementation_for_a_type": """
        @functools.singledispatch
        def helper(x):
            return x
        @helper.register
        def _(x: int):
            return x + EDIT
        @following
        def function(x):
            return helper(x)
    """,
    "bound_method_of_a_table": """
        lookup = {1: EDIT}.get
        @following
        def function(x):
            return lookup(x)
    """,
    "callable_object": """
        def helper(x):
            return x + EDIT
        class Calling:
            def __call__(self, x):
                return helper(x)
        function = following(Calling())
    """,
    "method": """
        def helper(x):
            return x + EDIT
        class Owner:
            @following
            def method(self, x):
                return helper(x)
        function = Owner().method
    """,
    "coroutine_function": """
        async def helper(x):
            return x + EDIT
        @following
        async def coroutine(x):
            return await helper(x)
        def function(x):
            return asyncio.run(coroutine(x))
        function.stats = coroutine.stats
    """,
    "depends_on_a_function": """
        def helper(x):
            return second(x)
        def second(x):
            return x + EDIT
        @cached("code", depends=[helper])
        def function(x):
            return globals()["helper"](x)
    """,
    "depends_on_a_class": """
        class Helper:
            def method(self, x):
                return x + EDIT
        @cached("code", depends=[Helper])
        def function(x):
            return globals()["Helper"]().method(x)
    """,
    "depends_on_a_value": """
        TEXT = str(EDIT)
        @cached("code", depends=[TEXT])
        def function(x):
            return TEXT
    """,
}

if find_spec("pydantic"):
    CASES["model"] = """
        import pydantic
        class Model(pydantic.BaseModel):
            amount: int = pydantic.Field(default=EDIT)
            @pydantic.field_validator("amount")
            @classmethod
            def checked(cls, value):
                return value
        @following
        def function(x):
            return x + Model().amount
    """


def _written(processes: Processes, edit: str, *, noted: bool = False) -> None:
    for case, text in CASES.items():
        files = f"--- {case}\n{HEAD}{textwrap.dedent(text)}".split("--- ")[1:]
        for name, source in (file.partition("\n")[::2] for file in files):
            if noted:
                source = "# moved\n\n\n" + re.sub(r"(def \w+\(.*:|.*EDIT.*)\n", r"\1  # noted\n\n", source)
            processes.write(f"{name}.py", source.replace("EDIT", edit))


ALL = f"""
import importlib
for case in {sorted(CASES)}:
    function = importlib.import_module(case).function
    print(case, "|", function(1), "|", "miss" if function.stats().misses else "hit")
"""


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """For each case what four processes got: at first, after an edit of comments and layout, of the code, and back."""
    folder = tmp_path_factory.mktemp("edits")
    processes = Processes(folder, XDG_STATE_HOME=str(folder / "state"))
    found: dict[str, list[tuple[str, str]]] = {}
    for edit, noted in (("1", False), ("1", True), ("2", False), ("1", False)):
        _written(processes, edit, noted=noted)
        for line in processes.run(ALL):
            case, answer, counted = line.split(" | ")
            found.setdefault(case, []).append((answer, counted))
    return found


@pytest.mark.parametrize("case", CASES)
def test_an_edit_of_reached_code_is_a_miss_and_one_of_comments_a_hit(
    edits: dict[str, list[tuple[str, str]]], case: str
) -> None:
    first, noted, edited, back = edits[case]
    assert [counted for _, counted in (first, noted, edited, back)] == ["miss", "hit", "miss", "hit"]
    assert noted == back == (first[0], "hit")
    assert edited[0] != first[0]


UNFOLLOWED = """
import functools
from codomyrmex_cache import cached
def helper(x):
    return x + EDIT
@cached("unfollowed")
def own(x):
    return helper(x)
@cached("unfollowed", version=EDIT)
def versioned(x):
    return helper(x)
"""


def test_without_version_code_only_the_own_code_and_the_version_count(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.write("unfollowed.py", UNFOLLOWED.replace("EDIT", "1"))
    assert [processes.call(f"unfollowed.{name}(1)") for name in ("own", "versioned")] == [("2", "miss"), ("2", "miss")]
    processes.write("unfollowed.py", UNFOLLOWED.replace("EDIT", "2"))
    assert [processes.call(f"unfollowed.{name}(1)") for name in ("own", "versioned")] == [("2", "hit"), ("3", "miss")]


def test_a_version_that_cannot_be_encoded_is_refused_at_decoration() -> None:
    for version in (object(), threading.Lock(), [object()]):
        with pytest.raises(CacheConfigurationError, match="version="):
            cached("inputs", version=version)


# -- version="code", in one process ----------------------------------------------------------------------------------------

LIVE = """
import array
import collections
import functools
import live_other
AMOUNT = 1
def helper(x):
    return x + AMOUNT
class Helper:
    amount = 1
    def method(self, x):
        return x + self.amount
tool = Helper()
table = {"a": helper}
amounts = {"a": [1]}
buffer, queue, numbers = bytearray([1]), collections.deque([1]), array.array("i", [1])
class Slotted:
    __slots__ = ("amount",)
slotted = Slotted()
slotted.amount = 1
@memo(version="code")
def constant(x):
    return x + AMOUNT
@memo(version="code")
def called(x):
    return helper(x)
@memo(version="code")
def attribute(x):
    return live_other.helper(x)
@memo(version="code")
def looked_up(x):
    return table["a"](x)
@memo(version="code")
def contained(x):
    return x + amounts["a"][0]
@memo(version="code")
def of_class(x):
    return x + Helper.amount
@memo(version="code")
def by_method(x):
    return Helper().method(x)
@memo(version="code")
def by_object(x):
    return tool.method(x)
@memo(version="code")
def of_buffer(x):
    return x + buffer[0]
@memo(version="code")
def of_queue(x):
    return x + queue[0]
@memo(version="code")
def of_numbers(x):
    return x + numbers[0]
@memo(version="code")
def of_slots(x):
    return x + slotted.amount
@memo(version="code")
def builtin(x):
    return len([x]) + x
def make(inner):
    @memo(version="code")
    def closed(x):
        return inner(x)
    def rebind(other):
        nonlocal inner
        inner = other
    return closed, rebind
closed, rebind = make(helper)
"""


@pytest.fixture
def live(memo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module whose names can be bound anew."""
    other, module = ModuleType("live_other"), ModuleType("live")
    for made, source in ((other, "def helper(x):\n    return x + 1\n"), (module, LIVE)):
        monkeypatch.setitem(sys.modules, made.__name__, made)
        vars(made)["memo"] = memo
        exec(compile(source, f"{made.__name__}.py", "exec"), vars(made))
    return module


def _rebound(live: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], object]]:
    """For each function of the module a change, to be undone by the monkeypatch, that makes it answer 11 to 1."""
    return {
        "constant": lambda: monkeypatch.setattr(live, "AMOUNT", 10),
        "called": lambda: monkeypatch.setattr(live, "helper", lambda x: x + 10),
        "attribute": lambda: monkeypatch.setattr(live.live_other, "helper", lambda x: x + 10),
        "looked_up": lambda: monkeypatch.setitem(live.table, "a", lambda x: x + 10),
        "contained": lambda: monkeypatch.setitem(live.amounts, "a", [10]),
        "of_class": lambda: monkeypatch.setattr(live.Helper, "amount", 10),
        "by_method": lambda: monkeypatch.setattr(live.Helper, "method", lambda self, x: x + 10),
        "by_object": lambda: monkeypatch.setattr(live.tool, "amount", 10, raising=False),
        "builtin": lambda: monkeypatch.setattr(live, "len", lambda items: 10, raising=False),
    }


@pytest.mark.parametrize(
    "name", ["constant", "called", "attribute", "looked_up", "contained", "of_class", "by_method", "by_object", "builtin"]
)
def test_a_name_bound_anew_is_a_miss_at_the_next_call(live: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    function = getattr(live, name)
    assert outcome(function, 1) == (2, "miss")
    assert outcome(function, 1) == (2, "hit")
    with monkeypatch.context() as patch:
        _rebound(live, patch)[name]()
        assert outcome(function, 1) == (11, "miss")
        assert outcome(function, 1) == (11, "hit")
    assert outcome(function, 1) == (2, "hit")


def test_a_closure_bound_anew_is_a_miss_at_the_next_call(live: ModuleType) -> None:
    assert outcome(live.closed, 1) == (2, "miss")
    live.rebind(lambda x: x + 10)
    assert outcome(live.closed, 1) == (11, "miss")
    live.rebind(live.helper)
    assert outcome(live.closed, 1) == (2, "hit")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("contained", "amounts['a'][0]"), ("by_object", "tool.amount"), ("of_buffer", "buffer[0]"), ("of_queue", "queue[0]"),
        ("of_numbers", "numbers[0]"), ("of_slots", "slotted.amount"),
    ],
)  # fmt: skip
def test_a_constant_changed_in_place_is_a_miss_at_the_next_call(live: ModuleType, name: str, path: str) -> None:
    function = getattr(live, name)
    exec(f"{path} = 1", vars(live))
    assert outcome(function, 1) == (2, "miss")
    exec(f"{path} = 10", vars(live))
    assert outcome(function, 1) == (11, "miss")
    exec(f"{path} = 1", vars(live))
    assert outcome(function, 1) == (2, "hit")


# -- depends= --------------------------------------------------------------------------------------------------------------


def shift(path: Path, seconds: int) -> None:
    """A `touch` that leaves other times than before."""
    stat = path.stat()
    os.utime(path, (stat.st_atime + seconds, stat.st_mtime + seconds))


def test_depends_on_a_glob_of_files(memo: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a.md").write_text("a")
    (folder / "other.txt").write_text("other")

    def counts(*changes: Callable[[], object]) -> list[str]:
        found = []
        for change in changes:
            change()
            found.append(outcome(relative)[1])
            assert outcome(absolute)[1] == found[-1]
        return found

    def joined() -> str:
        return "".join(path.read_text() for path in sorted(folder.glob("*.md")))

    relative = memo(depends=[File("prompts/*.md")], name="relative")(joined)
    absolute = memo(depends=[File(folder / "*.md")], name="absolute")(joined)
    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: None, "miss"),
        (lambda: None, "hit"),
        (lambda: shift(folder / "a.md", 100), "hit"),
        (lambda: (folder / "other.txt").write_text("edited"), "hit"),
        (lambda: (folder / "a.md").write_text("b"), "miss"),
        (lambda: (folder / "b.md").write_text(""), "miss"),
        (lambda: (folder / "b.md").rename(folder / "c.md"), "miss"),
        ((folder / "c.md").unlink, "hit"),
        (lambda: (folder / "a.md").write_text("a"), "hit"),
    ]
    assert counts(*(change for change, _ in changes)) == [expected for _, expected in changes]


def test_depends_on_one_file_that_may_be_missing(memo: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "prompt.md"

    @memo(depends=[File(path)])
    def function() -> str:
        return path.read_text() if path.exists() else "default"

    assert [outcome(function), outcome(function)] == [("default", "miss"), ("default", "hit")]
    path.write_text("edited")
    assert [outcome(function), outcome(function)] == [("edited", "miss"), ("edited", "hit")]
    path.unlink()
    assert outcome(function) == ("default", "hit")


@pytest.mark.parametrize("pattern", ["prompts", "prompts/", "prompts/**", "prompts/**/*", "**/*.md"])
def test_depends_on_a_folder_never_overlooks_an_edit(memo: Callable[..., Any], tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "prompts" / "deep" / "a.md"
    path.parent.mkdir(parents=True)
    path.write_text("one")

    @memo(depends=[File(tmp_path / pattern)])
    def function() -> str:
        return path.read_text()

    assert function() == "one"
    path.write_text("edited")
    assert function() == "edited"


def test_a_file_depended_on_that_changes_meanwhile_is_not_stored(memo: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "prompt.md"
    path.write_text("one")

    @memo(depends=[File(path)])
    def function() -> str:
        if path.read_text() == "one":
            path.write_text("two")
        return path.read_text()

    assert function() == "two"
    path.write_text("one")
    assert outcome(function) == ("two", "miss")


def test_depends_on_the_environment(memo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    @memo(depends=[Env("INPUTS_MODEL")])
    def function() -> str | None:
        return os.environ.get("INPUTS_MODEL")

    answers = []
    for value in (None, "a", "", "a", "None", None):
        if value is None:
            monkeypatch.delenv("INPUTS_MODEL", raising=False)
        else:
            monkeypatch.setenv("INPUTS_MODEL", value)
        answers.append(outcome(function))
    assert answers == [(None, "miss"), ("a", "miss"), ("", "miss"), ("a", "hit"), ("None", "miss"), (None, "hit")]


def test_depends_on_a_package(memo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def function() -> str:
        return pytest.__version__

    assert outcome(memo(depends=[Package("pytest")])(function))[1] == "miss"
    assert outcome(memo(depends=[Package("pytest")])(function))[1] == "hit"
    monkeypatch.setattr("codomyrmex_cache._versions._distribution_version", lambda name: "0.0.1")
    assert outcome(memo(depends=[Package("pytest")])(function))[1] == "miss"


def test_depends_on_a_package_that_is_not_installed_fails_at_once() -> None:
    with pytest.raises(CacheConfigurationError, match=r"'no-such-distribution'.*installed"):
        Package("no-such-distribution")


def test_depends_on_values_and_functions(memo: Callable[..., Any]) -> None:
    prompt = ["summarize"]
    add, subtract = (lambda x: x + 1), (lambda x: x - 1)

    def function() -> int:
        return 1

    depends: list[Any] = [prompt, add, "model-1", None, {"temperature": 0.5}]
    decorated = memo(depends=depends)(function)
    assert [outcome(decorated)[1], outcome(decorated)[1]] == ["miss", "hit"]
    prompt.append("briefly")
    assert outcome(decorated)[1] == "miss"
    prompt.pop()
    assert outcome(decorated)[1] == "hit"
    for place, value in ((1, subtract), (2, "model-2"), (3, 0), (4, {"temperature": 0.6})):
        other = [*depends[:place], value, *depends[place + 1 :]]
        assert outcome(memo(depends=other)(function))[1] == "miss"
    assert outcome(memo(depends=depends[::-1])(function))[1] == "miss"
    assert outcome(memo(depends=depends[:-1])(function))[1] == "miss"


@pytest.mark.parametrize("depends", ["prompts/*.md", b"x", 3, {"a"}])
def test_depends_that_is_no_list_is_refused(depends: Any) -> None:
    with pytest.raises(CacheConfigurationError, match="depends="):
        cached("inputs", depends=depends)


# -- FileContent -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text("one")
    return path


@pytest.fixture
def reading(memo: Callable[..., Any]) -> Any:
    """A memoized function of a file's content."""

    @memo()
    def reading(path: Annotated[Path, FileContent], suffix: str = "") -> str:
        return Path(path).read_text() + suffix

    return reading


def test_a_touched_file_is_a_hit_and_an_edited_one_a_miss(reading: Any, source: Path) -> None:
    assert [outcome(reading, source), outcome(reading, path=source)] == [("one", "miss"), ("one", "hit")]
    shift(source, 100)
    assert outcome(reading, source) == ("one", "hit")
    source.touch()
    assert outcome(reading, source) == ("one", "hit")
    source.write_text("edited")
    assert [outcome(reading, source), outcome(reading, source)] == [("edited", "miss"), ("edited", "hit")]
    source.write_text("one")
    assert outcome(reading, source) == ("one", "hit")
    copy = source.with_name("copy")
    copy.write_text("one")
    assert outcome(reading, copy) == ("one", "miss")


@pytest.mark.parametrize("recent_seconds", [2.0, 0.0], ids=["a recent file", "an older file"])
def test_an_edit_of_the_same_size_with_the_old_time_is_a_miss(
    reading: Any, source: Path, monkeypatch: pytest.MonkeyPatch, recent_seconds: float
) -> None:
    monkeypatch.setattr("codomyrmex_cache._files.RECENT_SECONDS", recent_seconds)
    before = source.stat()
    assert reading(source) == "one"
    while source.stat().st_ctime_ns == before.st_ctime_ns:  # the file system's clock has ticks
        source.write_text("two")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = source.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert outcome(reading, source) == ("two", "miss")


def test_a_file_that_takes_the_place_of_another_is_a_miss(reading: Any, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codomyrmex_cache._files.RECENT_SECONDS", 0.0)
    other = source.with_name("other")
    other.write_text("two")
    before = source.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reading(source) == "one"
    other.replace(source)
    assert outcome(reading, source) == ("two", "miss")


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an element for each time that a file's content was read for a key."""
    made: list[int] = []

    def counting(**options: Any) -> Any:
        made.append(1)
        return blake2b(**options)

    monkeypatch.setattr("codomyrmex_cache._files.blake2b", counting)
    return made


def test_a_file_older_than_two_seconds_is_read_for_one_key_only(
    reading: Any, source: Path, digests: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _files.RECENT_SECONDS == 2.0
    monkeypatch.setattr(_files, "RECENT_SECONDS", 1000.0)  # however slowly the test runs
    reading(source)
    first = len(digests)
    assert first >= 2  # before and after the function ran
    assert [outcome(reading, source)[1] for _ in range(3)] == ["hit"] * 3
    young = len(digests)
    assert young == first + 3
    monkeypatch.setattr(_files, "time", SimpleNamespace(time=lambda: time.time() + 1000.1))
    for number in range(5):
        reading(source, str(number))
    assert len(digests) == young + 1
    shift(source, -100)
    assert outcome(reading, source, "0") == ("one0", "hit")
    assert len(digests) == young + 2
    monkeypatch.setattr(_files, "time", time)
    assert outcome(reading, source) == ("one", "hit")
    assert len(digests) == young + 3


def test_a_missing_file_is_the_functions_own_affair(reading: Any, source: Path) -> None:
    missing = source.with_name("missing")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="missing") as caught:
            reading(missing)
        assert Path(caught.value.filename) == missing
        assert caught.traceback[-1].name == "read_text" or caught.traceback[-1].name == "open"
    assert reading.stats().bypasses == 2
    missing.write_text("there")
    assert [outcome(reading, missing), outcome(reading, missing)] == [("there", "miss"), ("there", "hit")]
    missing.unlink()
    with pytest.raises(FileNotFoundError):
        reading(missing)


def test_a_link_counts_by_what_it_leads_to(reading: Any, source: Path) -> None:
    link, other = source.with_name("link"), source.with_name("other")
    other.write_text("other")
    link.symlink_to(source)
    assert [outcome(reading, link), outcome(reading, link)] == [("one", "miss"), ("one", "hit")]
    source.write_text("edited")
    assert outcome(reading, link) == ("edited", "miss")
    link.unlink()
    link.symlink_to(other)
    assert outcome(reading, link) == ("other", "miss")
    other.write_text("one")
    assert outcome(reading, link) == ("one", "hit")
    other.unlink()
    with pytest.raises(FileNotFoundError):
        reading(link)


def test_a_directory_for_a_file_runs_uncached_and_names_tree(
    memo: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @memo()
    def listing(path: Annotated[Path, FileContent]) -> list[str]:
        return sorted(item.name for item in path.iterdir())

    (tmp_path / "folder").mkdir()
    assert listing(tmp_path / "folder") == []
    (tmp_path / "folder" / "a").write_text("")
    assert outcome(listing, tmp_path / "folder") == (["a"], "bypass")
    (record,) = caplog.records
    assert "'path'" in record.getMessage()
    assert "Tree(" in record.getMessage()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no paths for open files")
def test_what_is_no_file_is_not_read_for_the_key(memo: Callable[..., Any]) -> None:
    @memo()
    def content(path: Annotated[str, FileContent]) -> str:
        return Path(path).read_text()

    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    try:
        assert content(f"/dev/fd/{reader}") == "from a pipe"
    finally:
        os.close(reader)
    assert content.stats().bypasses == 1


def test_a_path_and_its_text_are_two_arguments(memo: Callable[..., Any], source: Path) -> None:
    @memo()
    def kind(path: Annotated[Any, FileContent]) -> str:
        return type(path).__name__

    assert [kind(source), kind(str(source)), kind(os.fsencode(source))] == [type(source).__name__, "str", "bytes"]


def test_none_for_a_file_counts_as_itself(memo: Callable[..., Any]) -> None:
    @memo()
    def function(path: Annotated[Path | None, FileContent] = None, tree: Annotated[Path | None, Tree()] = None) -> bool:
        return path is None and tree is None

    assert [outcome(function), outcome(function, None, tree=None)] == [(True, "miss"), (True, "hit")]


def test_a_file_changed_while_the_function_runs_is_not_stored(memo: Callable[..., Any], source: Path) -> None:
    @memo()
    def growing(path: Annotated[Path, FileContent]) -> str:
        before = path.read_text()
        path.write_text(before + "+")
        return before

    assert growing(source) == "one"
    assert growing(source) == "one+"
    source.write_text("one")
    assert outcome(growing, source) == ("one", "miss")
    source.write_text("one")
    assert growing.refresh(source) == "one"
    source.write_text("one")
    assert growing.contains(source) is False
    assert (growing.stats().sets, growing.stats().errors) == (0, {})


def test_a_file_changed_while_a_coroutine_waits_is_not_stored(
    memo: Callable[..., Any], manager: CacheManager, source: Path
) -> None:
    @memo()
    async def slow(path: Annotated[Path, FileContent]) -> str:
        before = path.read_text()
        entered.set()
        await release.wait()
        return before

    async def main() -> None:
        nonlocal entered, release
        entered, release = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(slow(source))
        await entered.wait()
        source.write_text("two")
        release.set()
        assert await task == "one"
        source.write_text("one")
        assert await slow.acontains(source) is False
        assert await slow(source) == "one"
        assert await slow.acontains(source) is True
        await manager.aclose()

    entered = release = asyncio.Event()
    asyncio.run(main())


@pytest.mark.parametrize("form", ["call", "refresh"])
def test_a_file_removed_while_the_function_runs_is_not_stored(memo: Callable[..., Any], source: Path, form: str) -> None:
    @memo()
    def consume(path: Annotated[Path, FileContent]) -> str:
        content = path.read_text()
        path.unlink()
        return content

    call = consume if form == "call" else consume.refresh
    assert call(source) == "one"
    source.write_text("one")
    assert consume.contains(source) is False


# -- Tree ------------------------------------------------------------------------------------------------------------------


def test_a_tree_counts_by_the_paths_and_contents_of_its_files(memo: Callable[..., Any], tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "inner").mkdir(parents=True)
    (root / "a.py").write_text("a")
    (root / "inner" / "b.py").write_text("b")
    (root / "notes.txt").write_text("notes")

    @memo()
    def contents(root: Annotated[Path, Tree("**/*.py")]) -> dict[str, str]:
        return {path.relative_to(root).as_posix(): path.read_text() for path in root.glob("**/*.py")}

    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: None, "miss"),
        (lambda: None, "hit"),
        (lambda: shift(root / "a.py", 100), "hit"),
        (lambda: (root / "notes.txt").write_text("edited"), "hit"),
        ((root / "empty").mkdir, "hit"),
        (lambda: (root / "inner" / "b.py").write_text("edited"), "miss"),
        (lambda: (root / "inner" / "c.py").write_text("c"), "miss"),
        (lambda: (root / "inner" / "c.py").rename(root / "inner" / "d.py"), "miss"),
        (lambda: (root / "inner" / "d.py").rename(root / "d.py"), "miss"),
        ((root / "d.py").unlink, "hit"),
        (lambda: (root / "inner" / "b.py").write_text("b"), "hit"),
        (lambda: (root / "inner").rename(root / "moved"), "miss"),
    ]
    for place, (change, expected) in enumerate(changes):
        change()
        assert outcome(contents, root) == (contents.__wrapped__(root), expected), place


@pytest.mark.parametrize(
    "marker", [Tree, Tree(), Tree("**"), Tree("**/*"), Tree("*/*.py")], ids=["bare", "()", "**", "**/*", "*/*"]
)
def test_a_tree_never_overlooks_an_edit(memo: Callable[..., Any], tmp_path: Path, marker: Any) -> None:
    path = tmp_path / "inner" / "a.py"
    path.parent.mkdir()
    path.write_text("one")

    def content(root: Path) -> str:
        return path.read_text()

    content.__annotations__["root"] = Annotated[Path, marker]
    decorated = memo()(content)
    assert decorated(tmp_path) == "one"
    path.write_text("edited")
    assert decorated(tmp_path) == "edited"


def test_a_tree_that_is_no_directory_runs_uncached(
    memo: Callable[..., Any], source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @memo()
    def function(root: Annotated[Path, Tree()]) -> bool:
        return root.exists()

    assert [outcome(function, source), outcome(function, source.with_name("missing"))] == [(True, "bypass"), (False, "bypass")]
    (record,) = caplog.records
    assert "FileContent" in record.getMessage()


# -- what does not count, and what counts instead ----------------------------------------------------------------------------


class Client:
    """Not keyable by itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()


def test_ignored_parameters_by_position_and_keyword(memo: Callable[..., Any]) -> None:
    @memo(ignore=["client", "log"])
    def function(client: Any, x: int, *rest: int, log: Any = None) -> tuple[str, int]:
        return (client.name, x)

    one, two = Client("one"), Client("two")
    assert outcome(function, one, 1) == (("one", 1), "miss")
    assert outcome(function, two, 1) == (("one", 1), "hit")
    assert outcome(function, client=two, x=1, log=two) == (("one", 1), "hit")
    assert outcome(function, two, 2) == (("two", 2), "miss")
    assert outcome(function, two, 2, 3) == (("two", 2), "miss")
    assert function.invalidate(Client("three"), 1) is True


def test_ignored_names_may_be_one_str_and_the_whole_of_the_variadics(memo: Callable[..., Any]) -> None:
    @memo(ignore="self")
    def method(self: Any, x: int) -> int:
        return x

    assert [outcome(method, Client("one"), 1), outcome(method, Client("two"), 1)] == [(1, "miss"), (1, "hit")]

    @memo(ignore=("args", "kwargs"))
    def function(x: int, *args: Any, **kwargs: Any) -> int:
        return x

    assert [outcome(function, 1, Client("a")), outcome(function, 1, 2, y=Client("b"))] == [(1, "miss"), (1, "hit")]


def test_an_ignored_member_of_the_keywords(memo: Callable[..., Any]) -> None:
    @memo(ignore=["trace"])
    def function(x: int, **options: Any) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name != "trace"}

    assert outcome(function, 1, temperature=0.5, trace=Client("a")) == ({"temperature": 0.5}, "miss")
    assert outcome(function, 1, trace=Client("b"), temperature=0.5) == ({"temperature": 0.5}, "hit")
    assert outcome(function, 1, temperature=0.5) == ({"temperature": 0.5}, "hit")
    assert outcome(function, 1, temperature=0.6) == ({"temperature": 0.6}, "miss")


def test_an_unknown_name_to_ignore_fails_at_decoration_with_the_names() -> None:
    with pytest.raises(CacheConfigurationError, match=r"function.*no parameter 'clinet'.*'x', 'client'"):

        @cached("inputs", ignore=["clinet", "x"])
        def function(x: int, client: Any) -> None: ...

    with pytest.raises(CacheConfigurationError, match="it has none"):

        @cached("inputs", ignore="x")
        def empty() -> None: ...


def test_ignored_and_converted_parameters_by_annotation(memo: Callable[..., Any]) -> None:
    @memo()
    def function(
        client: Annotated[Client, By(lambda client: client.name)], x: int, *, log: Annotated[Any, Ignore, "a note"] = None
    ) -> tuple[str, int]:
        return (client.name, x)

    assert outcome(function, Client("one"), 1) == (("one", 1), "miss")
    assert outcome(function, Client("one"), x=1, log=Client("log")) == (("one", 1), "hit")
    assert outcome(function, Client("two"), 1) == (("two", 1), "miss")
    assert function.stats().bypasses == 0


def test_annotations_that_are_not_text(memo: Callable[..., Any]) -> None:
    text = "def function(x, client: Annotated[Client, Ignore()], day: Annotated[str, By(str.lower)] = 'Mon'): return x"
    module = {"Annotated": Annotated, "Client": Client, "Ignore": Ignore, "By": By}
    exec(compile(text, "annotated.py", "exec", dont_inherit=True), module)
    function = memo()(module["function"])
    assert outcome(function, 1, Client("one")) == (1, "miss")
    assert outcome(function, 1, Client("two"), day="mon") == (1, "hit")
    assert outcome(function, 1, Client("two"), day="Tue") == (1, "miss")


def test_annotations_that_only_type_checkers_can_read(memo: Callable[..., Any]) -> None:
    @memo()
    def function(x: OnlyForTypeCheckers, client: Annotated[Client, Ignore]) -> Any:
        return x

    assert [outcome(function, 1, Client("one")), outcome(function, 1, Client("two"))] == [(1, "miss"), (1, "hit")]
    for marker in ("Ignore", "By(str)", "FileContent", "Tree()", "Tree"):

        def marked(x: Any) -> None: ...

        marked.__annotations__["x"] = f"Annotated[OnlyForTypeCheckers, {marker}]"
        with pytest.raises(CacheConfigurationError, match=r"'x'.*OnlyForTypeCheckers.*importable at run time"):
            cached("inputs")(marked)


def test_a_marker_beside_none(memo: Callable[..., Any], source: Path) -> None:
    @memo()
    def function(path: Annotated[Path, FileContent] | None = None) -> str | None:
        return None if path is None else path.read_text()

    assert [outcome(function), outcome(function, source)] == [(None, "miss"), ("one", "miss")]
    source.write_text("edited")
    assert [outcome(function), outcome(function, source)] == [(None, "hit"), ("edited", "miss")]


def test_a_marker_in_an_alias_of_the_enclosing_function_or_class(memo: Callable[..., Any], source: Path) -> None:
    Source = Annotated[Path, FileContent]  # noqa: N806  a type

    @memo()
    def function(path: Source) -> str:
        return path.read_text()

    class Owner:
        Inner = Annotated[Path, FileContent]

        @memo()
        def method(self, path: Inner) -> str:
            return path.read_text()

    assert [function(source), Owner().method(source)] == ["one", "one"]
    source.write_text("edited")
    assert [function(source), Owner().method(source)] == ["edited", "edited"]


def test_a_marker_reaches_through_partials(memo: Callable[..., Any], source: Path) -> None:
    def read(suffix: str, path: Annotated[Path, FileContent]) -> str:
        return path.read_text() + suffix

    function = memo()(functools.partial(read, "!"))
    assert function(source) == "one!"
    source.write_text("edited")
    assert function(source) == "edited!"


def test_a_marker_where_it_cannot_count_is_refused() -> None:
    def inside(paths: list[Annotated[Path, FileContent]]) -> None: ...

    def behind(path: Annotated[Path, FileContent]) -> None: ...

    @functools.wraps(behind)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    class Calling:
        def __call__(self, path: Annotated[Path, FileContent]) -> None: ...

    def without_function(x: Annotated[Any, By]) -> None: ...

    for form in (inside, wrapper, Calling(), without_function):
        with pytest.raises(CacheConfigurationError, match=r"FileContent|By"):
            cached("inputs")(form)


def test_metadata_of_others_is_left_alone(memo: Callable[..., Any]) -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError("not comparable")

        __hash__ = None  # type: ignore[assignment]

    def function(x: int) -> int:
        return x

    function.__annotations__["x"] = Annotated[int, Odd()]
    assert [outcome(memo()(function), 1), outcome(memo()(function), 1)] == [(1, "miss"), (1, "hit")]


def test_a_key_function_decides_alone(memo: Callable[..., Any]) -> None:
    class Owner:
        def __init__(self, name: str) -> None:
            self.client = Client(name)

        @memo(key=lambda self, request, *, retries=3: (self.client.name, request["id"]))
        def method(self, request: dict[str, Any], *, retries: int = 3) -> tuple[Any, ...]:
            return (self.client.name, request["id"])

    one, two = Owner("one"), Owner("two")
    assert outcome(one.method, {"id": 1, "lock": threading.Lock()}) == (("one", 1), "miss")
    assert outcome(one.method, request={"id": 1}, retries=5) == (("one", 1), "hit")
    assert outcome(two.method, {"id": 1}) == (("two", 1), "miss")
    assert outcome(one.method, {"id": True}) == (("one", True), "miss")
    assert one.method.invalidate({"id": 1}) is True


def test_a_key_function_that_fails_runs_uncached(memo: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    @memo(key=lambda request: request["id"])
    def function(request: dict[str, int]) -> int:
        return len(request)

    assert outcome(function, {}) == (0, "bypass")
    assert "KeyError" in caplog.text
    for options in ({"key": 3}, {"key": len, "ignore": "x"}):
        with pytest.raises(CacheConfigurationError, match="key="):
            cached("inputs", **options)  # type: ignore[call-overload]


def test_an_edited_key_function_finds_nothing_of_the_old_one(memo: Callable[..., Any]) -> None:
    def function(request: dict[str, int]) -> dict[str, int]:
        return request

    def marked(request: dict[str, int]) -> dict[str, int]:
        return request

    by_name = memo(key=lambda request: request["name"])(function)
    assert by_name({"name": 1, "id": 2}) == {"name": 1, "id": 2}
    by_id = memo(key=lambda request: request["id"])(function)
    assert by_id({"name": 2, "id": 1}) == {"name": 2, "id": 1}
    for decide in (min, max):  # written in C
        items = [1, 5] if decide is min else [0, 1]
        assert memo(key=decide)(lambda items: items)(items) == items
    for part in ("name", "id"):
        marked.__annotations__["request"] = Annotated[
            dict, By((lambda r: r["name"]) if part == "name" else (lambda r: r["id"]))
        ]
        request = {"name": 1, "id": 2} if part == "name" else {"name": 2, "id": 1}
        assert memo()(marked)(request) == request


# -- scope -------------------------------------------------------------------------------------------------------------------

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")


def in_context(name: str, call: Callable[[], Any]) -> Any:
    """The answer of a call for one tenant."""
    context = contextvars.copy_context()
    context.run(tenant.set, name)
    return context.run(call)


def test_a_scope_function_keeps_tenants_apart(memo: Callable[..., Any]) -> None:
    current = ["nobody"]

    @memo(scope=lambda: current[0])
    def function(x: int) -> str:
        return f"{current[0]}{x}"

    answers = []
    for current[0] in ("a", "b", "a", "b"):
        answers.append(outcome(function, 1))
    assert answers == [("a1", "miss"), ("b1", "miss"), ("a1", "hit"), ("b1", "hit")]
    assert function.invalidate(1) is True
    current[0] = "a"
    assert function.contains(1) is True


def test_a_context_variable_keeps_tenants_apart(memo: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    @memo(scope=tenant)
    def function(x: int) -> str:
        return f"{tenant.get('nobody')}{x}"

    for _ in range(2):
        assert outcome(function, 1) == ("nobody1", "bypass")
    (record,) = caplog.records
    assert "'scope'" in record.getMessage()
    names = ["a", "b", "a", "", "None"]
    assert [in_context(name, lambda: function(1)) for name in names] == [f"{name}1" for name in names]
    assert (function.stats().misses, function.stats().hits) == (4, 1)
    with ThreadPoolExecutor(4) as pool:
        jobs = [(name, pool.submit(in_context, name, lambda: function(2))) for name in names * 20]
        assert [(name, job.result()) for name, job in jobs] == [(name, f"{name}2") for name in names * 20]


def test_a_context_variable_keeps_the_tenants_of_tasks_apart(memo: Callable[..., Any], manager: CacheManager) -> None:
    @memo(scope=tenant)
    async def function(x: int) -> str:
        await asyncio.sleep(0)
        return f"{tenant.get()}{x}"

    async def request(name: str) -> str:
        tenant.set(name)
        return str(await function(1))

    async def main() -> list[str]:
        try:
            return list(await asyncio.gather(*(request(name) for name in "abcab" * 10)))
        finally:
            await manager.aclose()

    assert asyncio.run(main()) == [f"{name}1" for name in "abcab" * 10]
    assert function.stats().misses == 3


def test_a_scope_that_fails_or_cannot_be_encoded_runs_uncached(memo: Callable[..., Any]) -> None:
    def failing() -> str:
        raise RuntimeError("no request")

    def function(x: int) -> int:
        return x

    for scope in (failing, threading.Lock):
        assert outcome(memo(scope=scope)(function), 1) == (1, "bypass")
        with pytest.raises(UnkeyableError, match="'scope'"):
            memo(scope=scope, strict=True)(function)(1)
    with pytest.raises(CacheConfigurationError, match="scope="):
        cached("inputs", scope="tenant")  # type: ignore[call-overload]


# -- strict ------------------------------------------------------------------------------------------------------------------


def test_strict_raises_instead_of_running_uncached(memo: Callable[..., Any], manager: CacheManager, source: Path) -> None:
    runs: list[int] = []

    @memo(strict=True)
    def function(x: Any, y: int = 0) -> int:
        runs.append(1)
        return y

    @memo(strict=True)
    async def coroutine(x: Any) -> int:
        runs.append(1)
        return 1

    @memo(strict=True)
    def reading(path: Annotated[Path, FileContent]) -> int:
        runs.append(1)
        return 1

    for unkeyable in (threading.Lock(), object(), iter([1]), [threading.Lock()], {"k": (x for x in ())}):
        with pytest.raises(UnkeyableError, match="'x'") as caught:
            function(unkeyable, y=1)
        assert caught.value.parameter == "x"
        with pytest.raises(UnkeyableError, match="'x'"):
            asyncio.run(coroutine(unkeyable))
    with pytest.raises(UnkeyableError, match="'path'"):
        reading(source.with_name("missing"))
    assert runs == []
    assert outcome(function, 1, y=1) == (1, "miss")


# -- explain -----------------------------------------------------------------------------------------------------------------


def test_explain_a_hit_and_an_expired_entry(memo: Callable[..., Any], clock: FakeClock) -> None:
    @memo(ttl=60)
    def function(x: int) -> int:
        return x

    function(1)
    clock.advance(12.5)
    found = function.explain(1)
    assert (found.outcome, found.key, found.differing, found.nearest) == ("hit", function.key(1), (), None)
    assert str(found) == f"hit: stored 12.5 s ago\n  key      {function.key(1)}"
    clock.advance(50)
    found = function.explain(x=1)
    assert found.outcome == "expired"
    assert str(found) == f"expired: stored 62.5 s ago for 60.0 s\n  key      {function.key(1)}"
    assert (function.stats().calls, function.stats().expirations) == (1, 0)


def test_explain_a_miss_of_everything(memo: Callable[..., Any]) -> None:
    @memo()
    def function(x: int) -> int:
        return x

    found = function.explain(1)
    assert (found.outcome, found.reason, found.nearest) == ("miss", "nothing is stored for this function", None)
    assert str(found) == f"miss: nothing is stored for this function\n  key      {function.key(1)}"
    other = memo(name="other")(lambda x: x)
    other(1)
    assert function.explain(1) == found


def test_explain_names_the_arguments_that_differ_from_the_nearest(memo: Callable[..., Any]) -> None:
    @memo()
    def function(a: int, b: int = 0, *rest: int, c: int = 0, **more: int) -> int:
        return a

    function(1)
    function(5, 5, 5, c=5, d=5)
    labels = ("function", "version", "code")
    for args, kwargs, differing in [
        ((2,), {}, ("a",)), ((True,), {}, ("a",)), ((1, 2), {}, ("b",)), ((1, 0, 3), {}, ("rest",)), ((1,), {"c": 4}, ("c",)),
        ((1,), {"d": 4}, ("more",)), ((2, 2), {}, ("a", "b")), ((5, 5, 5), {"c": 5, "d": 6}, ("more",)),
        ((5, 5, 4), {"c": 4, "d": 5}, ("rest", "c")),
    ]:  # fmt: skip
        found = function.explain(*args, **kwargs)
        nearest = function.key(1) if args[0] in (1, 2) else function.key(5, 5, 5, c=5, d=5)
        assert (found.outcome, found.differing, found.nearest, found.compared) == ("miss", differing, nearest, 2)
        assert found.same == (*labels, *(name for name in ("a", "b", "rest", "c", "more") if name not in differing))
        assert str(found) == (
            f"miss: differs from the nearest stored call in {', '.join(differing)}\n"
            f"  key      {function.key(*args, **kwargs)}\n"
            f"  nearest  {nearest} (of 2 compared)\n"
            f"  differs  {', '.join(differing)}\n"
            f"  same     {', '.join(found.same)}"
        )


def test_explain_names_version_scope_and_dependencies(
    memo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    current = "a"
    monkeypatch.setenv("INPUTS_MODEL", "one")
    (tmp_path / "prompt").write_text("one")

    def define(version: object = 1) -> Any:
        options = {"scope": lambda: current, "depends": [File(tmp_path / "prompt"), Env("INPUTS_MODEL")], "version": version}
        return memo(**options, name="explained")(lambda x: x)

    function = define()
    function(1)
    assert function.explain(1).outcome == "hit"
    assert define(2).explain(1).differing == ("version",)
    current = "b"
    assert function.explain(1).differing == ("scope",)
    assert function.explain(2).differing == ("scope", "x")
    current = "a"
    monkeypatch.setenv("INPUTS_MODEL", "two")
    assert function.explain(1).differing == ("depends[1]",)
    (tmp_path / "prompt").write_text("two")
    assert function.explain(1).differing == ("depends[0]", "depends[1]")
    monkeypatch.setenv("INPUTS_MODEL", "one")
    assert function.explain(1).differing == ("depends[0]",)
    (tmp_path / "prompt").write_text("one")
    assert function.explain(1).outcome == "hit"


def test_explain_names_edited_and_reached_code_and_closures(
    memo: Callable[..., Any], live: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(factor: int) -> Any:
        @memo(name="closing")
        def function(x: int) -> int:
            return x * factor

        return function

    make(1)(1)
    assert make(2).explain(1).differing == ("variable factor",)
    one, other = memo(name="edited")(lambda x: x), memo(name="edited")(lambda x: -x)
    one(1)
    assert other.explain(1).differing == ("code",)
    live.called(1)
    monkeypatch.setattr(live, "helper", lambda x: x)
    assert live.called.explain(1).differing == ("reached code",)


def test_explain_tells_parameters_from_parts_of_the_same_name(memo: Callable[..., Any]) -> None:
    def define(version: int) -> Any:
        @memo(version=version, name="named alike", scope=lambda: 1)
        def function(version: int = 0, code: int = 0, scope: int = 0, function: int = 0) -> int:
            return version

        return function

    define(1)(5)
    assert len(define(2).explain(5).differing) == 1
    (differing,) = define(1).explain(6).differing
    assert differing == "version"
    assert define(2).explain(5).differing != ("version",)
    assert define(1).explain(5, 1, 1, 1).differing == ("code", "scope", "function")


def test_explain_what_cannot_be_keyed(memo: Callable[..., Any]) -> None:
    @memo()
    def function(x: Any) -> int:
        return 1

    function(1)
    found = function.explain(threading.Lock())
    assert (found.outcome, found.key, found.nearest) == ("unkeyable", "", None)
    assert "'x'" in found.reason
    assert "lock" in found.reason
    assert str(found) == f"unkeyable: {found.reason}"
    assert function.stats().calls == 1


def test_explain_in_an_event_loop(memo: Callable[..., Any], manager: CacheManager) -> None:
    class Owner:
        @memo()
        async def method(self, x: Any) -> Any:
            return x

    async def main() -> list[Any]:
        owner = Owner()
        try:
            await owner.method(1)
            return [await owner.method.aexplain(x) for x in (1, 2, threading.Lock())]
        finally:
            await manager.aclose()

    hit, miss, unkeyable = asyncio.run(main())
    assert [hit.outcome, miss.outcome, unkeyable.outcome] == ["hit", "miss", "unkeyable"]
    assert miss.differing == ("x",)
    assert "self" in miss.same


SECRET = "correct horse battery staple"


def _everything_stored(tmp_path: Path, valkey: Server | None) -> Iterator[bytes]:
    for path in sorted((tmp_path / "files").rglob("*")):
        yield str(path).encode()
        if path.is_file():
            yield path.read_bytes()
    if valkey is not None:
        import redis

        with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
            for key in client.scan_iter():
                yield key
                yield client.dump(key) if client.type(key) == b"hash" else client.get(key)


@pytest.mark.parametrize("backend", ["file_based", "redis"])
def test_no_value_of_an_argument_is_in_the_stored_bytes(backend: str, tmp_path: Path, valkey: Server) -> None:
    manager = CacheManager(directory=tmp_path / "files", url=valkey.url, secret=b"a secret for the tests")
    (tmp_path / SECRET).write_text("content")

    def make(closed: str) -> Any:
        @cached("secret", backend=backend, manager=manager, scope=lambda: SECRET, depends=[SECRET], version=SECRET)
        def function(x: Any, path: Annotated[Path, FileContent], **more: Any) -> str:
            return f"a plain result {len(closed)}"

        return function

    function = make(SECRET)
    arguments: Any = (SECRET, tmp_path / SECRET), {"y": [SECRET], "z": {SECRET: 1}}
    function(*arguments[0], **arguments[1])
    assert function.explain(*arguments[0], **arguments[1]).outcome == "hit"
    manager.close()
    stored = list(_everything_stored(tmp_path, valkey if backend == "redis" else None))
    assert any(b"a plain result" in chunk for chunk in stored)
    for form in (SECRET.encode(), SECRET.encode("utf-16-le"), SECRET.encode().hex().encode()):
        assert not any(form in chunk for chunk in stored)
