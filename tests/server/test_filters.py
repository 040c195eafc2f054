"""What of MongoDB's languages is taken over HTTP, and what is not."""

import re
from typing import Any

import pytest
from bson import Code, DBRef, ObjectId, Regex

from superduper import commands
from superduper.errors import InvalidInput
from superduper_server import filters

ID = ObjectId("69203b1e8f1d2c3a4b5c6d7e")


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"x": 1}
    for _ in range(depth):
        found = {"$and": [found]}
    return found


@pytest.mark.parametrize(
    "filter",
    [
        {},
        {"_id": ID},
        {"a.b.0": None, "c": {"d": [1, {"e": 2}]}},
        {"x": {"$gt": 1, "$lte": 5}},
        {"x": {"$in": [1, "a", None, {"b": 2}]}, "y": {"$exists": False}},
        {"$or": [{"x": 1}, {"$and": [{"y": 2}, {"z": {"$ne": 3}}]}]},
        {"x": {"$not": {"$size": 2}}},
        {"x": {"$elemMatch": {"$gte": 1, "$lt": 3}}},
        {"x": {"$elemMatch": {"a": 1, "b": {"$gt": 2}}}},
        {"x": {"$type": "string"}, "y": {"$all": [1, 2]}},
        nested(15),
    ],
)
def test_ordinary_filters_are_taken(filter: dict[str, Any]) -> None:
    filters.check_filter(filter)


@pytest.mark.parametrize(
    ("filter", "why"),
    [
        ({"$where": "sleep(5000)"}, r"'\$where' is not taken"),
        ({"x": {"$where": "1"}}, r"'\$where'"),
        ({"$expr": {"$function": {"body": "1"}}}, r"'\$expr'"),
        ({"$and": [{"$or": [{"$expr": 1}]}]}, r"'\$expr'"),
        ({"x": {"$elemMatch": {"$where": "1"}}}, r"'\$where'"),
        ({"x": {"$not": {"$regex": "(a+)+$"}}}, r"'\$regex'"),
        ({"x": {"$gt": {"$function": 1}}}, "starts with"),
        ({"x": {"$in": [{"$gt": 1}]}}, "starts with"),
        ({"x": {"a": {"$gt": 1}}}, "starts with"),
        ({"x": Regex("(a+)+$")}, "Regex is not taken"),
        ({"x": {"$in": [1, re.compile("a")]}}, "Pattern is not taken"),
        ({"x": Code("1")}, "Code is not taken"),
        ({"x": DBRef("a", 1)}, "DBRef is not taken"),
        ({"x": {"$in": 3}}, "needs a list"),
        ({"$or": []}, "at least one"),
        ({"$or": [3]}, "must be an object"),
        ({"x": {"$not": 3}}, "needs an object"),
        ({"$comment": "x"}, r"'\$comment'"),
        ({"x": {"$text": "a"}}, r"'\$text'"),
        ({"a\0b": 1}, "path"),
        ({"": 1}, "path"),
        ({"a.$where": 1}, "not a field's path"),
        (nested(16), "deeper than 16"),
        ({"x": {"$not": {"$not": {"$not": {"$where": 1}}}}}, r"'\$where'"),
        ([], "must be an object"),
    ],
)
def test_other_filters_are_refused_by_name(filter: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        filters.check_filter(filter)


@pytest.mark.parametrize(
    "update",
    [
        {"$set": {"a.b": 1, "c": {"d": 2}}, "$unset": {"e": ""}},
        {"$inc": {"n": 1}, "$mul": {"m": 2}, "$min": {"a": 1}, "$max": {"b": 2}},
        {"$push": {"list": {"$each": [1, 2], "$slice": -5, "$sort": {"a": 1}}}},
        {"$addToSet": {"list": {"name": "x"}}},
        {"$pull": {"list": {"$gte": 3}}},
        {"$pull": {"list": {"a": 1, "b": {"$in": [1]}}}},
        {"$pull": {"list": 3}},
        {"$currentDate": {"at": True, "ts": {"$type": "timestamp"}}},
        {"$rename": {"old": "new"}},
        {"$setOnInsert": {"a": 1}},
        {"$set": {"list.$[].a": 1, "list.$.b": 2}},
    ],
)
def test_ordinary_updates_are_taken(update: dict[str, Any]) -> None:
    filters.check_update(update)


@pytest.mark.parametrize(
    ("update", "why"),
    [
        ([{"$set": {"a": "$b"}}], "not a pipeline"),
        ({}, "empty"),
        ({"a": 1}, "'a' is not taken"),
        ({"$bit": {"a": {"and": 1}}}, r"'\$bit'"),
        ({"$set": 3}, "needs an object"),
        ({"$set": {"a": {"$function": 1}}}, "starts with"),
        ({"$set": {"$where": 1}}, "not a field's path"),
        ({"$set": {"a.$[elem]": 1}}, "not a field's path"),
        ({"$push": {"a": {"$where": 1}}}, r"'\$where'"),
        ({"$push": {"a": {"$each": [{"$gt": 1}]}}}, "starts with"),
        ({"$pull": {"a": {"$regex": "x"}}}, r"'\$regex'"),
        ({"$pull": {"a": {"b": {"$where": "x"}}}}, r"'\$where'"),
        ({"$currentDate": {"a": "yes"}}, "currentDate needs"),
        ({"$rename": {"a": 3}}, "new name"),
        ({"$rename": {"a": "$b"}}, "not a field's path"),
        ({"$set": {"a": Code("1")}}, "Code is not taken"),
    ],
)
def test_other_updates_are_refused_by_name(update: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        filters.check_update(update)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"$set": 1}, "starts with"),
        ({"a": {"$gt": 1}}, "starts with"),
        ({"a": [{"b": {"$ref": "x"}}]}, "starts with"),
        ({"a\0": 1}, "NUL"),
    ],
)
def test_documents_hold_no_operators(document: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        filters.check_document(document)


def test_documents_may_be_deep_but_not_for_ever() -> None:
    document: Any = 1
    for _ in range(64):
        document = {"a": document}
    filters.check_document(document)
    with pytest.raises(InvalidInput, match="deeper than 64"):
        filters.check_document({"a": document})


@pytest.mark.parametrize(
    ("projection", "why"),
    [
        ({"a": "$b"}, "values are"),
        ({"a": {"$function": {}}}, r"'\$function'"),
        ({"a": {"$slice": 1, "$elemMatch": {}}}, "values are"),
        ({"a": {"$elemMatch": {"$where": "1"}}}, r"'\$where'"),
        ({"$a": 1}, "path"),
        (["$a"], "path"),
        ({"a": {"$meta": "textScore"}}, r"'\$meta'"),
    ],
)
def test_projections_hold_no_expressions(projection: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        filters.check_projection(projection)


def test_ordinary_projections_are_taken() -> None:
    filters.check_projection({"a": 1, "b.c": False, "l": {"$slice": [0, 5]}, "m.$": 1})
    filters.check_projection({"l": {"$elemMatch": {"a": 1}}})
    filters.check_projection(["a", "b.c"])


def test_the_field_of_the_command_is_named() -> None:
    command = commands.FindDocuments(collection="docs", sort=[("$a", 1)])
    with pytest.raises(InvalidInput, match="^sort: "):
        filters.check_command(command)
    with pytest.raises(InvalidInput, match=r"^filter: '\$where'"):
        filters.check_command(
            commands.CreateWatcher(
                collection="docs", name="w", model="m", key="x", filter={"$where": "1"}
            )
        )


@pytest.mark.parametrize(
    "value", [{"$ne": None}, Regex(".*"), re.compile("."), {"a": [{"$gt": 1}]}]
)
def test_operators_are_for_the_fields_of_operators(value: Any) -> None:
    for command in (
        commands.ExplainValue(collection="docs", id=value, field="y"),
        commands.ListStates(collection="docs", name="n", state="filled", after={"_id": value}),
    ):
        with pytest.raises(InvalidInput, match="^(id|after): "):
            filters.check_command(command)
    filters.check_command(commands.ExplainValue(collection="docs", id={"a": 1}, field="y"))
    filters.check_command(commands.Predict(collection="docs", name="m", inputs=[value]))


def test_operators_and_extended_json_go_together() -> None:
    read = filters.read_operators(
        {"_id": {"$in": [{"$oid": str(ID)}]}, "at": {"$gt": {"$date": "2026-01-01T00:00:00Z"}}}
    )
    assert read["_id"] == {"$in": [ID]}
    assert read["at"]["$gt"].year == 2026
    with pytest.raises(InvalidInput, match=r"'\$where' is not taken in a filter.* \$gte, \$in"):
        filters.read_operators({"x": {"$where": "1"}})
    deep: Any = 1
    for _ in range(100):
        deep = {"$and": [deep]}
    with pytest.raises(InvalidInput, match="deeper than 64"):
        filters.read_operators(deep)
