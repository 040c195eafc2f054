"""A short form of `python -m tests.interleavings`, and whether it can be believed."""

import random
from typing import Any

import bson
import pytest
from pymongo import UpdateOne
from pymongo.database import Database
from pymongo.errors import BulkWriteError

from superduper.imputations.fill import Fill, Stale, removal_of, update_of
from superduper.imputations.provenance import fill_record, input_hash
from tests.interleavings.__main__ import run
from tests.interleavings.memory import matches, updated
from tests.interleavings.simulation import INPUTS

VALUES = (*INPUTS, [], {}, "b", True, [None], [{"y": 1}])


def test_no_order_of_events_overwrites_a_persons_value() -> None:
    result = run(1_500, seed=2)
    assert result["violation"] is None
    assert result["interleavings"] == 1_500
    assert result["our changes"] > 500 and result["person set"] > 500


def _unconditional_fill(*fills: Fill, **_: Any) -> UpdateOne:
    written: dict[str, Any] = {}
    for fill in fills:
        written |= {fill.target: fill.value, f"_fill.{fill.target}": fill.record}
    return UpdateOne({"_id": fills[0].document_id}, {"$set": written})


def _unconditional_removal(document_id: Any, path: str, _: Stale) -> UpdateOne:
    return UpdateOne({"_id": document_id}, {"$unset": {path: "", f"_fill.{path}": ""}})


@pytest.mark.parametrize(
    ("where", "broken"),
    [
        ("writing.update_of", _unconditional_fill),
        ("process.removal_of", _unconditional_removal),
        ("revert.update_of", _unconditional_fill),
        ("revert.removal_of", _unconditional_removal),
    ],
    ids=["fill", "clear", "redo", "revert"],
)
def test_it_would_see_an_update_without_a_condition(
    monkeypatch: pytest.MonkeyPatch, where: str, broken: Any
) -> None:
    monkeypatch.setattr(f"superduper.imputations.{where}", broken)
    assert run(4_000, seed=2)["violation"] is not None


def test_updates_do_in_memory_what_they_do_in_a_store(database: Database[Any]) -> None:
    chance = random.Random(3)
    cases = [_case(chance, number) for number in range(400)]
    database["docs"].insert_many(document for document, _ in cases)
    refused = {document["_id"] for document, update in cases if not _taken(database, update)}
    stored = {each["_id"]: each for each in database["docs"].find()}
    effects = 0
    for document, update in cases:
        after = document
        if document["_id"] in refused:
            with pytest.raises((AttributeError, TypeError)):
                updated(document, update._doc)
        elif matches(document, update._filter):
            after = updated(document, update._doc)
        effects += after != document
        found = stored[document["_id"]]
        assert bson.encode(after) == bson.encode(found), (document, update)
    assert 100 < effects < 300


def _taken(database: Database[Any], update: UpdateOne) -> bool:
    try:
        database["docs"].bulk_write([update])
    except BulkWriteError:
        return False
    return True


def _often(chance: random.Random, value: Any) -> Any:
    return value if chance.random() < 0.8 else chance.choice(VALUES)


def _case(chance: random.Random, number: int) -> tuple[dict[str, Any], UpdateOne]:
    """A document, and an update that was made for it or for another one."""
    target = chance.choice(("y", "out.y"))
    values = {"x": chance.choice(VALUES), "ours": chance.choice(VALUES)}
    fill = fill_record(
        imputation="i", version=1, at=1, inputs=input_hash([values["x"]]), value=values["ours"]
    )
    document = {"_id": number, "x": _often(chance, values["x"])}
    replaces = None
    if chance.random() < 0.5:
        replaces = Stale(values["ours"], fill)
        there = _often(chance, values["ours"])
        if target == "y":
            document |= {"y": there, "_fill": {"y": fill}}
        else:
            document |= {"out": {"y": there}, "_fill": {"out": {"y": fill}}}
    elif target == "out.y" and chance.random() < 0.5:
        document["out"] = chance.choice(VALUES)
    if replaces is not None and chance.random() < 0.4:
        return document, removal_of(number, target, replaces)
    made = Fill(number, {"x": values["x"]}, target, "new", {**fill, "version": 2}, replaces)
    return document, update_of(made, exact=chance.random() < 0.3)
