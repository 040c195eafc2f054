"""What is under `_fill` but not as we write it is no provenance of ours."""

from typing import Any

import pytest
from filling import Filling, record_of
from pymongo.database import Database

from superduper.commands import FindDocuments
from superduper.imputations.counts import count_states
from superduper.imputations.fresh import fresh_documents
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import Imputations
from superduper.imputations.provenance import value_hash

WHOLE = {
    "imputation": "imputation",
    "version": 1,
    "at": 1,
    "input": "0" * 32,
    "value": value_hash("theirs"),
}
FORGED: list[Any] = [
    *({name: each for name, each in WHOLE.items() if name != left_out} for left_out in WHOLE),
    *({**WHOLE, "version": odd} for odd in ("1", None, {"a": 1}, [1])),
    *({**WHOLE, "at": "now"}, {**WHOLE, "input": [1]}, {**WHOLE, "value": 5}),
    *(5, None, [], [WHOLE], {}),
]


@pytest.mark.parametrize("keep", [True, False])
def test_a_value_with_a_forged_passport_is_a_persons(database: Database[Any], keep: bool) -> None:
    """Nothing that reads it fails, and so holds up what others wait for."""
    changes = {"on_input_change": "keep" if keep else "refill"}
    record = record_of(watcher=True, **changes)
    behind = record_of(("y",), ("z",), name="behind", watcher=True, **changes)
    for each in (record, behind):
        Imputations(database).create(each)
    filling = Filling(database, lambda value: f"of {value}", record)
    ids = list(range(len(FORGED)))
    forged = [
        {"_id": id, "x": 1, "y": "theirs", "_fill": {"y": fill}}
        for id, fill in zip(ids, FORGED, strict=True)
    ]
    filling.docs.insert_many(forged)

    filling.filler.fill_ids(ids)
    assert list(filling.docs.find(sort=[("_id", 1)])) == forged
    counts = count_states(database, record)
    assert counts["given"] == sum(counts.values()) == len(forged)
    found = fresh_documents(database, FindDocuments(collection="docs"), 10_000)
    assert [each["y"] for each in found] == ["theirs"] * len(forged)
    second = filling.filler_of(behind)
    second.graph = Graph([record, behind])
    second.fill_ids(ids)
    assert filling.docs.count_documents({"z": "of theirs"}) == len(forged)
