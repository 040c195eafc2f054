"""Documents by ids of all kinds: the right ones, and without a look at all the others."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId
from pymongo.database import Database

from superduper.store.by_id import ENOUGH, IdIndex, find_by_ids, with_id

IDS: list[Any] = [
    *(None, True, 1, 2.5, "text", b"bytes", ObjectId(), {}),
    *({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"a": [1, 2]}, {"a": {"b": 1}}),
    *({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": {"c": "d", "e": [1]}}),
    *({"a": Int64(2**40), "b": float("nan")}, {"a.b": 1}, {"": 1}, {"0": 1}),
]


def key(document_id: Any) -> bytes:
    return bson.encode({"": document_id})


@pytest.mark.parametrize("indexed", [False, True])
def test_what_is_found_by_an_id_is_the_document_with_that_id(
    database: Database[Any], indexed: bool
) -> None:
    docs = database["docs"]
    docs.insert_many({"_id": each} for each in IDS)
    if indexed:
        docs.create_index("_id.a")
    for each in IDS:
        assert [key(found["_id"]) for found in docs.find(with_id(each))] == [key(each)]


@pytest.mark.parametrize("indexed", [False, True])
def test_many_ids_find_each_of_their_documents_once(database: Database[Any], indexed: bool) -> None:
    docs = database["docs"]
    docs.insert_many({"_id": each, "n": number} for number, each in enumerate(IDS))
    if indexed:
        docs.create_index("_id.a")
    asked = [*IDS[::2], "not there", {"a": 77}]
    found = sorted(each["n"] for each in find_by_ids(docs, asked, {"n": 1}))
    assert found == list(range(0, len(IDS), 2))
    few = find_by_ids(docs, IDS, {"n": 1}, {"n": {"$lt": 3}})
    assert sorted(each["n"] for each in few) == [0, 1, 2]
    by_id_too = find_by_ids(docs, IDS, {"n": 1}, {"_id": "text"})
    assert [each["_id"] for each in by_id_too] == ["text"]


def test_an_index_is_made_on_what_tells_ids_apart(database: Database[Any]) -> None:
    docs = database["docs"]
    ids: list[Any] = [{"shop": "one", "order": {"number": each}} for each in range(ENOUGH)]
    docs.insert_many({"_id": each} for each in ids)
    index = IdIndex(docs)
    index.meet(ids[1:])
    index.meet(range(1_000))
    assert set(docs.index_information()) == {"_id_"}
    index.meet(ids[:1])
    assert set(docs.index_information()) == {"_id_", "_id.order.number_1"}


def test_no_index_is_made_where_the_server_has_one(database: Database[Any]) -> None:
    """Of ids without a plain part none can be made; for others it is asked how it finds them."""
    docs = database["docs"]
    unlike: list[Any] = [{"a": [each]} for each in range(ENOUGH)]
    docs.insert_many({"_id": each} for each in unlike)
    IdIndex(docs).meet(unlike)
    assert set(docs.index_information()) == {"_id_"}
    assert not IdIndex(docs)._is_wanted("text")


def test_an_update_by_such_an_id_looks_at_few_documents(database: Database[Any]) -> None:
    docs = database["docs"]
    docs.insert_many(
        {"_id": {"a": each, "b": "same"} if each % 2 else each} for each in range(3000)
    )
    index = IdIndex(docs)
    index.meet({"a": each, "b": "same"} for each in range(1, 2 * ENOUGH, 2))

    def update(document_id: Any) -> Callable[[], Any]:
        return lambda: docs.update_one(with_id(document_id), {"$inc": {"n": 1}})

    plain = _median_seconds([update(each) for each in range(0, 40, 2)])
    by_document = _median_seconds([update({"a": n, "b": "same"}) for n in range(1, 41, 2)])
    assert docs.count_documents({"n": 1}) == 40
    assert by_document < 6 * plain  # without the index it is some thirty times as much


def test_a_filter_of_any_form_looks_at_few_documents(database: Database[Any]) -> None:
    docs = database["docs"]
    docs.insert_many({"_id": each, "n": each % 2} for each in range(3000))
    odd: list[dict[str, Any]] = [
        {"$or": [{"n": 1}, {"n": "none"}]},
        {"$nor": [{"n": 0}]},
        {"$and": [{"n": 1}]},
        {"$expr": {"$eq": ["$n", 1]}},
        {"_id": {"$gte": 0}, "n": 1},
    ]

    def look(also: dict[str, Any]) -> Callable[[], Any]:
        def found() -> None:
            there = find_by_ids(docs, range(10), {"_id": 1}, also)
            assert sorted(there, key=str) == [{"_id": each} for each in range(1, 10, 2)]

        return found

    plain = _median_seconds([look({"n": 1})] * 10)
    for also in odd:
        assert _median_seconds([look(also)] * 5) < 10 * plain, also  # else some fifty times


def _median_seconds(acts: list[Callable[[], Any]]) -> float:
    taken = []
    for act in acts:
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
