"""The text that is kept of code stands alone, or is known not to."""

from __future__ import annotations

import enum
import functools
import importlib
import json as js
import math
import re
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import linalg

from superduper.fields.source import Source, source_of

LIMIT, NAMES, PAIRS = 3, ["a", "b"], {"x": (1,), "y": {"b", "a"}}
PATTERN = re.compile("a+")


class Colour(enum.Enum):
    RED = LIMIT


def fact(n: int) -> int:
    return 1 if n < 2 else n * fact(n - 1)


def shout(function: Any) -> Any:
    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        return str(function(*arguments)).upper()

    return wrapped


@dataclass
class Settings:
    rate: float = math.pi
    names: list[str] = field(default_factory=lambda: list(NAMES))


class Base:
    kind = Colour.RED

    def kinds(self) -> list[Colour]:
        return list(Colour)


class Thing(Base):
    def __init__(self, n: int = LIMIT) -> None:
        super().__init__()
        self.n, self.settings = n, Settings()

    @property
    def facts(self) -> list[int]:
        return [fact(i) for i in range(self.n)]

    @staticmethod
    def norm(x: Any) -> float:
        return float(linalg.norm(np.asarray(x)))

    def __call__(self, LOCAL: Any) -> Any:
        PATTERN = xml.etree.ElementTree.Element("p").tag
        return self.facts, self.norm([3, 4]), js.dumps(LOCAL), self.settings.names, PATTERN, PAIRS

    class Inner:
        def make(self) -> Thing:
            return Thing(1)


@shout
def loud(x: Any) -> Any:
    return f"{x} {Thing(2).kind.name}"


renamed = loud


def uses_renamed(x: Any) -> Any:
    return renamed(x)


def fresh(source: Source | None) -> dict[str, Any]:
    """The names of a text that was run in an empty module."""
    assert source is not None and source.complete, source and source.text
    names: dict[str, Any] = {"__name__": "fresh"}
    sys.modules["fresh"] = type(sys)("fresh")
    try:
        exec(compile(source.text, "<fresh>", "exec", dont_inherit=True), names)
    finally:
        del sys.modules["fresh"]
    return names


def test_a_class_with_all_it_needs_runs_alone() -> None:
    names = fresh(source_of([Thing]))
    made = names["Thing"]()
    assert made({"a": 1}) == Thing()({"a": 1})
    assert made.settings.rate == math.pi and made.kinds() == [names["Colour"].RED]
    assert names["Thing"].Inner().make().facts == [1]


def test_decorated_and_renamed_functions() -> None:
    assert fresh(source_of([loud]))["loud"]("x") == "X RED"
    assert fresh(source_of([uses_renamed]))["uses_renamed"]("y") == "Y RED"


def test_several_share_one_text() -> None:
    source = source_of([Thing, loud, fact, Thing.Inner])
    assert source is not None
    assert source.text.count("def fact(") == 1 and source.text.count("class Thing(") == 1
    assert {"Thing", "loud", "fact"} <= fresh(source).keys()


def test_the_text_is_the_same_each_time() -> None:
    assert source_of([Thing]) == source_of([Thing])
    text = (source_of([Thing]) or Source("", False)).text
    assert "PAIRS = {'x': (1,), 'y': {'a', 'b'}}" in text
    assert text.index("class Base") < text.index("class Thing")


def with_pattern(x: str) -> Any:
    return PATTERN.match(x)


def outer() -> Any:
    def inner(x: Any) -> Any:
        return x

    return inner


def generator() -> Iterator[int]:
    yield from (number for number in range(LIMIT))


@pytest.mark.parametrize(
    ("thing", "part"),
    [(with_pattern, "PATTERN.match"), (outer(), "def inner(x"), (lambda x: x + 1, "x + 1")],
)
def test_what_does_not_stand_alone_is_kept_for_reading(thing: Any, part: str) -> None:
    source = source_of([thing])
    assert source is not None and not source.complete and part in source.text


def test_a_generator_function() -> None:
    assert list(fresh(source_of([generator]))["generator"]()) == [0, 1, 2]


def test_code_without_text() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(x): return x\nclass Typed:\n    def f(self): return 1", names)
    assert source_of([names["typed"]]) is None
    assert source_of([names["Typed"]]) is None
    assert source_of([]) is None


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Path]]:
    path = tmp_path / "changing.py"
    path.write_text("import math\n\nK = 1\n\n\ndef area(r):\n    return math.pi * r * K\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("changing"), path
    del sys.modules["changing"]


def test_a_file_that_was_edited_since_is_not_believed(module: tuple[Any, Path]) -> None:
    changing, path = module
    assert (source_of([changing.area]) or Source("", False)).complete
    path.write_text(path.read_text().replace("r * K", "r * r * K * 2"))
    assert source_of([changing.area]) is None


def test_two_things_of_one_name_do_not_fit_in_one_text(module: tuple[Any, Path]) -> None:
    changing, _ = module

    def area() -> int:
        return 1

    area.__qualname__ = "area"
    source = source_of([changing.area, area])
    assert source is not None and not source.complete
