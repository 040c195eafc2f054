"""Dotted paths into documents."""

import pickle

import pytest

from superduper.errors import InvalidInput
from superduper.fields import paths
from superduper.fields.paths import MISSING


def test_get_finds_nested_values_and_tells_none_from_missing() -> None:
    document = {"a": {"b": {"c": 1}, "n": None}}

    assert paths.get(document, "a.b.c") == 1
    assert paths.get(document, "a.b") == {"c": 1}
    assert paths.get(document, "a.n") is None
    assert paths.get(document, "a.x") is MISSING
    assert paths.get(document, "a.n.x") is MISSING
    assert paths.get(document, "a.b.c.d") is MISSING
    assert paths.has(document, "a.n")
    assert not paths.has(document, "x")


def test_a_path_does_not_go_through_a_list() -> None:
    assert paths.get({"a": [{"b": 1}]}, "a.0.b") is MISSING
    assert paths.get({"a": [{"b": 1}]}, "a.b") is MISSING


def test_put_makes_the_documents_on_the_way_and_keeps_the_rest() -> None:
    document = {"a": {"kept": 1}}

    paths.put(document, "a.b.c", 2)
    paths.put(document, "d", 3)
    paths.put(document, "a.b.c", 4)

    assert document == {"a": {"kept": 1, "b": {"c": 4}}, "d": 3}


@pytest.mark.parametrize("inner", [None, 1, [1], "text"])
def test_put_refuses_to_write_into_what_is_no_document(inner: object) -> None:
    with pytest.raises(InvalidInput, match=r"cannot set 'a\.b\.c': 'a\.b' is a .*, not a document"):
        paths.put({"a": {"b": inner}}, "a.b.c", 1)


def test_nested_is_the_opposite_of_get() -> None:
    assert paths.nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}
    assert paths.nested("a", 1) == {"a": 1}
    assert paths.get(paths.nested("a.b", 5), "a.b") == 5


def test_missing_is_one_object_everywhere() -> None:
    assert not MISSING
    assert repr(MISSING) == "MISSING"
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING
