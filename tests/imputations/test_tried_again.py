"""What failed as often as is allowed is tried again for a reason, and for no other."""

from typing import Any

from pymongo.database import Database
from watching import Watching

from superduper.imputations import failures
from tests.waiting import until


def refuses_words(value: Any) -> str:
    if isinstance(value, str):
        raise ValueError("it is a word")
    return f"{value:.1f}"


def refuses_zero(value: Any) -> str:
    if value == 0:
        raise ValueError("it is nothing")
    return f"of {value}"


def test_a_person_a_version_and_an_input_have_it_tried_again(database: Database[Any]) -> None:
    watching = Watching(database)
    watching.live(refuses_words)
    watching.docs.insert_one({"_id": 1, "x": "word"})
    with watching.running():
        until(lambda: _tried(watching) == 3 and _is_dead(watching))
        assert failures.retry(database, "docs/imputation") == 1
        until(lambda: _tried(watching) == 6 and _is_dead(watching), what="three more attempts")
        watching.promote("imputation", watching.register(refuses_zero, "imputation_model"), 2)
        until(lambda: watching.document(1).get("y") == "of word", what="the next version's value")
        until(lambda: watching.failures() == {})
        watching.docs.update_one({"_id": 1}, {"$set": {"x": 0}})
        until(lambda: _is_dead(watching))
        watching.docs.update_one({"_id": 1}, {"$set": {"x": 2}})
        until(lambda: watching.document(1)["y"] == "of 2", what="the other input's value")
        until(lambda: watching.failures() == {})


def _tried(watching: Watching) -> int:
    return int(watching.watcher().get("counters", {}).get("failed", 0))


def _is_dead(watching: Watching) -> bool:
    [failure] = watching.failures().values() or [{}]
    return failure.get("state") == "dead" and failure["attempts"] == 3
