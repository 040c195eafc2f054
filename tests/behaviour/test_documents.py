"""Documents go in and come out, with rich values, the same on both transports."""

import datetime

import numpy as np
import pytest
import torch
from bson import ObjectId

from superduper.errors import AlreadyExists, InvalidInput, TooLarge


def test_plain_values_come_back_as_they_went_in(docs):
    document = {
        "_id": ObjectId(),
        "text": "häß",
        "number": 2**40,
        "float": 0.1,
        "none": None,
        "flag": True,
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5, 678000),
        "list": [1, {"a": [2.5]}],
        "data": b"\x00\xff",
    }
    assert docs.insert_one(document).inserted_id == document["_id"]
    assert docs.find_one(document["_id"]) == document


def test_an_id_is_given_to_a_document_without_one(docs):
    document = {"a": 1}
    inserted = docs.insert_one(document).inserted_id
    assert document["_id"] == inserted and docs.count_documents({"_id": inserted}) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(5, dtype=torch.float32),
        torch.randn(3, 4, 5),
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([True, False]),
        torch.randn(4).to(torch.bfloat16),
    ],
    ids=["vector", "3-D", "int64", "bool", "bfloat16"],
)
def test_tensors_come_back_as_tensors(docs, tensor):
    docs.insert_one({"_id": 1, "x": tensor})
    found = docs.find_one(1)["x"]
    assert isinstance(found, torch.Tensor)
    assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_numpy_arrays_come_back_as_arrays(docs):
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    docs.insert_one({"_id": 1, "x": array})
    found = docs.find_one(1)["x"]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, array)


def test_find_sorts_skips_limits_and_projects(docs):
    docs.insert_many([{"_id": i, "n": i % 3, "x": "x"} for i in range(10)])
    found = docs.find({"n": {"$gte": 1}}, {"x": 0}).sort([("n", -1), ("_id", 1)]).skip(1).limit(3)
    assert [(d["n"], d["_id"]) for d in found] == [(2, 5), (2, 8), (1, 1)]
    assert list(docs.find({"_id": 3}, ["n"])) == [{"_id": 3, "n": 0}]


def test_find_has_no_limit_of_its_own(docs):
    docs.insert_many([{"_id": i} for i in range(2_500)])
    assert sum(1 for _ in docs.find()) == 2_500


PYMONGOS = {
    "update_one": lambda docs: docs.update_one(
        {"_id": 0}, {"$set": {"x.$[one]": 7}}, array_filters=[{"one": 1}]
    ),
    "update_many": lambda docs: docs.update_many({}, {"$set": {"n": 1}}, hint="_id_"),
    "replace_one": lambda docs: docs.replace_one({"_id": 0}, {"n": 1}, hint="_id_"),
    "delete_one": lambda docs: docs.delete_one({"_id": 0}, hint="_id_"),
    "delete_many": lambda docs: docs.delete_many({"_id": 0}, hint="_id_"),
    "insert_one": lambda docs: docs.insert_one({"x": torch.ones(2)}, comment="one"),
    "insert_many": lambda docs: docs.insert_many([{"x": torch.ones(2)}], comment="many"),
    "count_documents": lambda docs: docs.count_documents({}, limit=1),
    "find_one": lambda docs: docs.find_one(0, hint="_id_"),
    "find": lambda docs: list(docs.find({}, batch_size=2, hint=[("_id", 1)])),
}


@pytest.mark.parametrize("name", PYMONGOS)
def test_more_of_pymongos_arguments_are_taken_or_refused_by_name(docs, native, name):
    docs.insert_many([{"_id": i, "x": [1, 2]} for i in range(3)])
    over_http = docs._native is None
    try:
        given = PYMONGOS[name](docs)
    except InvalidInput as error:
        assert over_http and "pymongo's, and not available over HTTP" in str(error)
        return
    assert not over_http
    told = {
        "update_one": lambda: given.modified_count == 1 and native.find_one(0)["x"] == [7, 2],
        "update_many": lambda: given.modified_count == 3,
        "replace_one": lambda: given.modified_count == 1,
        "delete_one": lambda: given.deleted_count == 1,
        "delete_many": lambda: given.deleted_count == 1,
        "insert_one": lambda: torch.equal(docs.find_one(given.inserted_id)["x"], torch.ones(2)),
        "insert_many": lambda: torch.equal(
            docs.find_one(given.inserted_ids[0], comment="again")["x"], torch.ones(2)
        ),
        "count_documents": lambda: given == 1,
        "find_one": lambda: given == {"_id": 0, "x": [1, 2]},
        "find": lambda: [each["_id"] for each in given] == [0, 1, 2],
    }
    assert told[name]()


def test_what_is_no_document_and_no_update_is_said(docs):
    for wrong in ([1], None, "text"):
        with pytest.raises(InvalidInput, match="a document must be a dict, not a"):
            docs.insert_one(wrong)
    with pytest.raises(InvalidInput):
        docs.update_one({"_id": 1}, {"y": 1})
    with pytest.raises(InvalidInput):
        docs.replace_one({"_id": 1}, {"$set": {"y": 1}})


def test_updates_replacements_and_deletions_tell_what_they_did(docs):
    docs.insert_many([{"_id": i, "n": 0} for i in range(4)])
    one = docs.update_one({"_id": 0}, {"$set": {"x": torch.ones(2)}})
    assert (one.matched_count, one.modified_count) == (1, 1)
    assert torch.equal(docs.find_one(0)["x"], torch.ones(2))
    assert docs.update_many({"_id": {"$gt": 0}}, {"$inc": {"n": 1}}).modified_count == 3
    assert docs.replace_one({"_id": 1}, {"n": 9}).modified_count == 1
    assert docs.find_one(1) == {"_id": 1, "n": 9}
    assert docs.delete_one({"_id": 1}).deleted_count == 1
    assert docs.delete_many({}).deleted_count == 3


def test_an_id_that_is_taken(docs):
    docs.insert_one({"_id": 1})
    with pytest.raises(AlreadyExists):
        docs.insert_one({"_id": 1})


def test_a_document_over_16_mb_is_named_and_nothing_is_inserted(docs):
    with pytest.raises(TooLarge, match="16"):
        docs.insert_one({"x": b"\x00" * (17 * 1024 * 1024)})
    assert docs.count_documents({}) == 0


@pytest.mark.parametrize("name", ["superduper.components", "system.x", "", "a\0b", "$x"])
def test_system_collections_cannot_be_reached(docs, name):
    with pytest.raises(InvalidInput):
        type(docs)(docs._transport, name).count_documents({})


def test_an_unknown_value_is_named_by_its_path(docs):
    with pytest.raises(InvalidInput, match=r"a\.b"):
        docs.insert_one({"a": {"b": object()}})
