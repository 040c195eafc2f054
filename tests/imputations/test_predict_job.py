"""Predictions as a job: kept in parts, gone on with by another worker, and gone at last."""

from typing import Any

import bson
import pytest
from bson.binary import Binary
from pymongo.database import Database

from superduper import commands, settings
from superduper.command import build
from superduper.errors import NotFound, TooLarge
from superduper.fields.sealing import seal
from superduper.imputations import kept_predictions
from superduper.imputations.kept_predictions import KeptPredictions
from superduper.imputations.predict_job import PREDICT, PredictContext, predict_later
from superduper.jobs.queue import Cancelled, Queue, RunningJob
from superduper.service import Service
from tests.waiting import until

DEADLY = 500


def double(n: int) -> int:
    if n == DEADLY:
        import os

        os._exit(3)
    return n * 2


@pytest.fixture
def service(database: Database[Any]):
    service = Service(database)
    service.context.registry.register(
        "docs",
        "model",
        "double",
        seal({"object": double, "preprocess": None, "postprocess": None}),
        author="tests",
        details={},
    )
    yield service
    service.close()


@pytest.fixture
def kept(database: Database[Any]) -> KeptPredictions:
    return KeptPredictions(database)


def put(service: Service, **asked: Any) -> str:
    command = build(commands.PredictLater, collection="docs", kind="model", name="double", **asked)
    return str(service.handle(command, "tests")["job"])


def claim(database: Database[Any], owner: str) -> RunningJob:
    queue = Queue(database, lease_seconds=0.5)
    found = []
    until(lambda: found.append(queue.claim(owner, [PREDICT])) or found[-1], what="a job")
    return found[-1]


def rows(service: Service, job: str, first: int = 0) -> list[Any]:
    found: list[Any] = []
    while page := service.handle(build(commands.ListOutputs, id=job, first=first), "t")["rows"]:
        found += page
        first += len(page)
    return found


@pytest.mark.parametrize("source", ["inputs", "filter"])
def test_a_killed_workers_job_goes_on_after_what_was_kept(
    service: Service, database: Database[Any], source: str
) -> None:
    database["docs"].insert_many([{"_id": n, "n": n} for n in range(600)])
    asked = {"inputs": list(range(600))} if source == "inputs" else {"filter": {}, "key": "n"}
    id = put(service, **asked)
    work = PredictContext(database, service.context.registry)
    first = claim(database, "one that dies")
    told: list[Any] = []

    def stop_after_two(progress: Any) -> None:
        told.append(progress)
        if len(told) == 2:
            raise Cancelled

    first.progress = stop_after_two  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        predict_later(first, work)
    first.abandon()
    before = list(database["superduper.predictions"].find({"what": "outputs"}).sort("first", 1))

    second = claim(database, "another")
    second.succeed(predict_later(second, work))

    made = rows(service, id)
    assert [row.get("value") for row in made] == [
        None if n == DEADLY else 2 * n for n in range(600)
    ]
    assert "ended with exit code 3" in made[DEADLY]["error"]
    assert [row.get("document") for row in made] == (
        [None] * 600 if source == "inputs" else list(range(600))
    )
    job = service.context.queue.get(id)
    assert job["result"] == {"rows": 600, "failed": 1, "version": 1}
    after = list(database["superduper.predictions"].find({"what": "outputs"}).sort("first", 1))
    assert after[0] == before[0]  # what was kept was not made again
    assert database["superduper.predictions"].count_documents({"what": "inputs"}) == 0


def test_outputs_expire(service: Service, database: Database[Any], monkeypatch) -> None:
    id = put(service, inputs=[1, 2])
    kept = KeptPredictions(database)
    assert kept.collect(hours=0) == 0  # not while the job is there to be done
    job = claim(database, "w")
    job.succeed(predict_later(job, PredictContext(database, service.context.registry)))
    assert kept.collect(hours=1) == 0
    assert rows(service, id) == [{"value": 2}, {"value": 4}]

    monkeypatch.setenv("SUPERDUPER_OUTPUTS_HOURS", "0.0000001")
    assert settings.get_number("OUTPUTS_HOURS") < 1e-6
    until(lambda: kept.collect(hours=0) == 1, what="the part to be old enough")
    with pytest.raises(NotFound, match="were kept for 1e-07 hours"):
        rows(service, id)


def test_inputs_whose_job_was_never_queued_expire(kept: KeptPredictions) -> None:
    kept.keep_inputs([1])
    until(lambda: kept.collect(hours=0) == 1, what="the part to be old enough")


def test_parts_stay_small_and_rows_are_found_by_number(
    kept: KeptPredictions, database: Database[Any], monkeypatch
) -> None:
    monkeypatch.setattr(kept_predictions, "PART_BYTES", 1000)
    odd = {"$set": {"a.b": 1}, "": Binary(b"x" * 300, 9)}  # no field of a document has such keys
    name = kept.keep_inputs([odd] * 10)
    parts = list(kept._parts.find({"of": name}).sort("first", 1))
    assert len(parts) == 5 and all(len(bson.encode(part)) < 1500 for part in parts)
    first, values = next(kept.inputs(name))
    assert first == 0 and values == [odd] * len(values)

    kept.keep_outputs(name, 0, [{"value": n} for n in range(700)])
    assert kept.outputs(name, 699) == ([{"value": 699}], 700)
    assert kept.outputs(name, 700) == ([], 700)
    assert kept.last(name) == ({"value": 699}, 700)
    kept.keep_outputs(name, 500, [{"error": "x"}])  # again from there
    assert kept.last(name)[1] <= 501 and kept.totals(name)["failed"] == 1


def test_what_is_too_large_to_be_kept(kept: KeptPredictions) -> None:
    with pytest.raises(TooLarge, match="input 1 is over 15 MiB"):
        kept.keep_inputs([b"", bytes(16 << 20)])
    kept.keep_outputs("n", 0, [{"document": 5, "value": bytes(16 << 20)}, {"value": 1}])
    rows, _ = kept.outputs("n", 0)
    assert rows[0] == {"document": 5, "error": "the output is over 15 MiB: it cannot be kept"}
