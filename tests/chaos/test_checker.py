"""The checker finds each kind of wrong, and nothing wrong where nothing is."""

from typing import Any

import pytest

from superduper.imputations.provenance import fill_record, input_hash
from tests.chaos.answer import answer
from tests.chaos.checker import Checker
from tests.chaos.users import Known, State

POISON = {"poison": "raise", "n": 1}


def filled(x: Any, *, version: int = 1, value: Any = None, inputs: Any = None) -> dict[str, Any]:
    y = answer(x, version, "y") if value is None else value
    record = fill_record(
        imputation="fill_y",
        version=version,
        at=1,
        inputs=input_hash([x if inputs is None else inputs]),
        value=y,
    )
    return {"_id": 1, "x": x, "y": y, "_fill": {"y": record}}


def known(*states: State) -> Known:
    return Known(1, list(states), [state.x for state in states])


def violations(database: Any, document: dict[str, Any] | None, *states: State) -> list[str]:
    if document is not None:
        database["docs"].insert_one(document)
    return Checker(database, [known(*states)], live=1, fields=["y"]).violations


@pytest.mark.parametrize(
    ("document", "state", "wrong"),
    [
        (filled(5), State(5), None),
        ({"_id": 1, "x": 5, "y": "U1"}, State(5, {"y": "U1"}), None),
        (None, State(5, there=False), None),
        (filled(5), State(5, {"y": "U1"}), "I1"),
        (filled(5, inputs=6), State(5), "I2"),
        ({**filled(6), "x": 5}, State(5), "I2"),
        ({"_id": 1, "x": 5}, State(5), "I4"),
        ({"_id": 1, "x": POISON}, State(POISON), "I5"),
        (filled(5), State(5, there=False), "I6"),
        (filled(5, version=2), State(5), "I7"),
        ({"_id": 1, "x": 5, "y": answer(5, 1, "y")}, State(5), "I7"),
        (None, State(5), "lost"),
        ({"_id": 1, "x": 6}, State(5), "x is 6"),
        ({**filled(5), "z": 1}, State(5), "fields nobody wrote"),
    ],
)
def test_each_kind_of_wrong(
    database: Any, document: dict[str, Any] | None, state: State, wrong: str | None
) -> None:
    found = violations(database, document, state)
    assert [wrong in each for each in found] == [True] if wrong else found == []


def test_either_state_of_an_unsure_document_will_do(database: Any) -> None:
    assert violations(database, filled(5), State(5, there=False), State(5)) == []


def test_a_document_that_nobody_made_is_told(database: Any) -> None:
    database["docs"].insert_one({"_id": 2})
    assert violations(database, filled(5), State(5)) == ["2: nobody made it"]
