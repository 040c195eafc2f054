"""Whoever reads what is computed from a blank waits for it, but not for what does not come."""

from typing import Any

import pytest
from filling import Filling, FunctionPredictor, record_of
from pymongo.database import Database
from watching import Watching

from superduper.imputations import failures
from superduper.imputations.failures import PUT_OFF, Failures
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import Imputations
from superduper.imputations.isolate import Isolation, Patience
from superduper.imputations.process import Filler
from superduper.imputations.states import States
from tests.freshness.scripts import Script
from tests.waiting import until

SHAPES = {"b": ("a",), "f": ("b",), "g": ("f", "r")}
UNLUCKY = 13


def test_a_script_of_which_one_model_once_ran_in_vain(database: Database[Any]) -> None:
    assert Script(database, "5 258").run(edits=5) > 10


class Chain(Filling):
    """`b` from `a`, `f` from `b`, `g` from `f` and `r`; a document in which all is filled."""

    def __init__(self, database: Database[Any]) -> None:
        super().__init__(database)
        records = [
            record_of(reads, (name,), name, watcher=True, on_input_change="refill")
            for name, reads in SHAPES.items()
        ]
        records = [Imputations(database).create(record) for record in records]
        self.records = {record.name: record for record in records}
        self.graph = Graph(records)
        self.asked = {name: FunctionPredictor(_model) for name in SHAPES}
        self.chain = {name: self._filler(name) for name in SHAPES}
        self.docs.insert_one({"_id": 0, "a": 1, "r": 1})
        self.fill("b", "f", "g")

    def _filler(self, name: str) -> Filler:
        return Filler(
            self.database,
            self.records[name],
            Isolation(self.asked[name], object(), Patience(30.0)),
            clock=self.clock,
            counters=self.counters,
            echoes=self.echoes,
            graph=self.graph,
        )

    def fill(self, *names: str) -> None:
        for name in names:
            self.chain[name].fill_ids([0])

    def remove_b(self, a: int) -> None:
        """A person removes what `f` was computed from, and changes the inputs of `b` and `g`."""
        self.docs.update_one({"_id": 0}, {"$unset": {"b": ""}, "$set": {"a": a, "r": 2}})
        for asked in self.asked.values():
            asked.asked.clear()

    def of(self, name: str) -> Failures:
        return Failures(self.database, f"docs/{name}")

    def retry(self, name: str) -> None:
        """What is due by now, as the leader's thread does it."""
        self.now += 60_000
        for failure in self.of(name).due(self.now, 10):
            self.chain[name].retry(failure)


def _model(value: Any) -> Any:
    if value == UNLUCKY:
        raise ValueError("unlucky")
    return {"value": sum(value.values()) if isinstance(value, dict) else value + 1}


@pytest.fixture
def chain(database: Database[Any]) -> Chain:
    return Chain(database)


def test_it_runs_once_when_the_blank_is_filled(chain: Chain) -> None:
    chain.remove_b(5)
    chain.fill("g", "f", "b", "g", "f", "g")
    assert chain.asked["g"].asked == [{"f": 7, "r": 2}]
    assert chain.docs.find_one({"_id": 0}, {"_fill": 0}) == {
        **{"_id": 0, "a": 5, "r": 2},
        **{"b": 6, "f": 7, "g": 9},
    }
    assert chain.of("g").known([0]) == {}


def test_while_it_waits_it_is_no_failure(chain: Chain) -> None:
    chain.remove_b(5)
    chain.fill("g")
    [record] = chain.of("g").known([0]).values()
    assert (record["state"], record["attempts"]) == (PUT_OFF, 0)
    assert failures.listing(chain.database, "docs/g") == []
    assert failures.retry(chain.database, "docs/g") == 0
    [standing] = States(chain.database, chain.records["g"]).walk({})
    assert standing.state == "stale"
    chain.retry("g")
    assert chain.asked["g"].asked == [] and chain.of("g").known([0])


def test_a_blank_that_stays_blank_is_not_waited_for(chain: Chain) -> None:
    chain.remove_b(UNLUCKY)
    chain.fill("g", "f", "b")
    assert chain.of("b").known([0]) and chain.asked["g"].asked == []
    chain.retry("g")
    assert chain.asked["g"].asked == [{"f": 3, "r": 2}]
    assert chain.of("g").known([0]) == {}


def test_nobody_waits_for_what_is_gone(chain: Chain) -> None:
    chain.remove_b(5)
    chain.fill("g")
    chain.docs.delete_one({"_id": 0})
    chain.retry("g")
    assert chain.of("g").known([0]) == {}


def test_in_a_running_service_it_is_looked_at_again(database: Database[Any]) -> None:
    watching = Watching(database)
    for name, reads in SHAPES.items():
        watching.live(_answer, reads, (name,), name)
    with watching.running():
        watching.docs.insert_one({"_id": 0, "a": 1, "r": 1})
        until(lambda: watching.document(0).get("g") == 4)
        watching.docs.update_one({"_id": 0}, {"$unset": {"b": ""}, "$set": {"a": UNLUCKY, "r": 2}})
        until(lambda: watching.document(0)["g"] == 5, 60, "what waited in vain")
        watching.docs.update_one({"_id": 0}, {"$set": {"a": 5}})
        until(lambda: watching.document(0)["g"] == 9)


def _answer(value: Any) -> int:
    if value == 13:
        raise ValueError("unlucky")
    return sum(value.values()) if isinstance(value, dict) else value + 1
