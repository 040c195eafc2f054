"""Documents that kill, hang or confuse the model: each is found, and the others are filled."""

import itertools
import os
import signal
import time
from typing import Any

import pytest
import torch
from pymongo.database import Database
from watching import Watching

from superduper.errors import TimedOut
from superduper.imputations.hosting import open_hosts
from superduper.imputations.isolate import BatchSize, Isolation, ModelUnusable, Patience
from tests.waiting import until


def poison(value: Any) -> Any:
    """A model that does as it is told."""
    if value == "raise":
        raise ValueError("told to")
    if value == "exit":
        raise SystemExit(3)
    if value == "die":
        os._exit(4)
    if value == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if value == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if value == "hang":
        time.sleep(1000)
    while value == "loop":
        pass
    if value == "endless":
        return itertools.count()
    if value == "memory":
        return len(bytearray(1 << 40))
    if value == "large":
        return "v" * (17 << 20)
    if value == "nan":
        return float("nan")
    if value == "deep":
        return poison(poison(value))
    if value == "unstorable":
        return object()
    return f"fine {value}"


class DiesOfSeven(torch.nn.Module):
    """Ends its process on a batch with a 7 in it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 7).any()):
            os._exit(4)
        return x


POISON = {
    "raise": "ValueError",
    "exit": "SystemExit",
    "die": "ChildDied",
    "kill": "ChildDied",
    "segv": "ChildDied",
    "memory": "MemoryError",
    "large": "",
    "deep": "RecursionError",
    "nan": "ValueError",
    "unstorable": "",
    "hang": "TimedOut",
    "endless": "",
}


class TestPoison:
    """Documents that kill, hang or confuse the model, in real child processes."""

    @pytest.fixture(autouse=True)
    def settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUPERDUPER_PREDICT_TIMEOUT", "2")

    def test_poison_documents_are_listed_and_the_others_are_filled(
        self, database: Database[Any]
    ) -> None:
        watching = Watching(database)
        watching.docs.insert_many({"_id": each, "x": each} for each in range(60))
        watching.docs.insert_many({"_id": f"scanned {kind}", "x": kind} for kind in POISON)
        watching.live(poison)
        names = {f"{how} {kind}" for how in ("scanned", "streamed") for kind in POISON}
        with watching.running():
            until(lambda: watching.status() == "watching", 120)
            assert watching.docs.count_documents({"y": {"$exists": True}}) == 60
            watching.docs.insert_many({"_id": f"streamed {kind}", "x": kind} for kind in POISON)
            watching.docs.insert_one({"_id": 60, "x": 60})
            until(lambda: watching.document(60).get("y") == "fine 60", 120)
            until(lambda: set(watching.failures(state="dead")) == names, 120)
            for name, failure in watching.failures().items():
                assert POISON[name.split()[1]] in failure["error"]["type"]
                assert failure["attempts"] == 3
            watching.docs.update_one({"_id": "scanned die"}, {"$set": {"x": "good"}})
            watching.docs.delete_one({"_id": "streamed hang"})
            left = names - {"scanned die", "streamed hang"}
            until(lambda: set(watching.failures()) == left, 90, f"all but {left}")
            counters = until(lambda: watching.watcher().get("counters"))
            assert counters["ChildDied"] >= 3, "each of those that die was tried three times"
            assert counters["TimedOut"] >= 3
        assert watching.document("scanned die")["y"] == "fine good"

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            *((kind, "TimedOut") for kind in ("hang", "loop", "endless")),
            *((kind, "ChildDied") for kind in ("die", "kill", "segv")),
        ],
    )
    def test_who_ends_the_process_or_does_not_end_is_named(
        self, database: Database[Any], kind: str, error: str
    ) -> None:
        """It costs one death, that was its attempt, and the others are done in two batches."""
        watching = Watching(database)
        hosts = open_hosts(watching.registry)
        isolation = Isolation(hosts, watching.register(poison), Patience(3.0))
        values: list[Any] = list(range(300))
        values[270] = kind
        counted: list[int] = []
        try:
            outcomes = isolation.predict(values, counted.append)
        finally:
            hosts.close()
        assert [at for at, outcome in enumerate(outcomes) if "error" in outcome] == [270]
        assert outcomes[270]["error"]["type"] == error
        assert outcomes[299]["value"] == "fine 299"
        assert (isolation.deaths, counted) == (1, [270])

    def test_the_culprits_of_a_batch_are_found_by_parting(self, database: Database[Any]) -> None:
        """In the model itself all values are one batch, and nobody knows with which it dies."""
        watching = Watching(database)
        hosts = open_hosts(watching.registry)
        isolation = Isolation(hosts, watching.register(DiesOfSeven()), Patience(5.0))
        values: list[Any] = [[0.0]] * 64
        values[17] = values[50] = [7.0]
        counted: list[int] = []
        try:
            outcomes = isolation.predict(values, counted.append)
        finally:
            hosts.close()
        assert [at for at, outcome in enumerate(outcomes) if "error" in outcome] == [17, 50]
        assert isolation.deaths <= 1 + 2 * 2, "of 64, of 8, of 1"
        assert {17, 50} <= set(counted)
        assert len(counted) <= 2 * 8

    def test_one_that_never_ends_is_waited_for_twice(self) -> None:
        class Hangs:
            def predict(self, component: Any, values: list[Any], timeout: float) -> Any:
                if "hang" in values:
                    raise TimedOut("it takes too long")
                return [{"value": value} for value in values]

        isolation = Isolation(Hangs(), object(), Patience(5.0))
        values = [*range(40), "hang", *range(20)]
        outcomes = isolation.predict(values, lambda position: None)
        assert [at for at, outcome in enumerate(outcomes) if "error" in outcome] == [40]
        assert isolation.deaths == 2, "with the others, and alone"

    def test_a_model_that_never_runs_is_nobodys_fault(self, database: Database[Any]) -> None:
        watching = Watching(database)
        hosts = open_hosts(watching.registry)
        component = watching.register(poison)
        database["superduper.artifacts"].delete_many({})
        isolation = Isolation(hosts, component, Patience(5.0))
        counted: list[int] = []
        try:
            with pytest.raises(ModelUnusable):
                isolation.predict([1, 2, 3], counted.append)
        finally:
            hosts.close()
        assert counted == []


def test_a_batch_shrinks_when_it_fails_and_grows_back() -> None:
    size = BatchSize(500)
    size.shrink()
    assert size.now == 250
    for _ in range(8):
        size.grow()
    assert size.now == 500
    for _ in range(12):
        size.shrink()
    assert size.now == 1


def test_patience_is_learned_and_limited() -> None:
    patience = Patience(30.0)
    assert patience.seconds(1) == 30.0
    patience.learn(10, 0.1)
    assert patience.seconds(1) == 2.0
    assert patience.seconds(100) == pytest.approx(20.0)
    assert patience.seconds(1000) == 30.0
    assert patience.seconds(1, attempt=2) == 4.0
    assert patience.seconds(1, attempt=3) == 30.0
    patience.learn(10, 0.1)
    patience.learn(1, 25.0)  # it waited for another's model to start
    assert patience.seconds(100) == pytest.approx(20.0)
