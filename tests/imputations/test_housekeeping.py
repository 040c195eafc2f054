"""A worker removes now and then what nothing refers to."""

import threading
from pathlib import Path
from typing import Any

from pymongo.database import Database

from superduper.fields.sealing import seal
from superduper.imputations.housekeeping import Housekeeping
from superduper.imputations.kept_predictions import KeptPredictions
from superduper.imputations.work import build_worker
from superduper.training.checkpoints import Checkpoints
from tests.imputations.fitting import Fitting
from tests.waiting import until

PLACE = {"collection": "docs", "kind": "function", "author": "test"}


def test_a_worker_removes_what_nothing_refers_to(database: Database[Any], tmp_path: Path) -> None:
    fitting = Fitting(database)
    fitting.register("function", "kept", len)
    artifacts = fitting.work.artifacts
    artifacts.put_code(seal({"object": abs}), name="orphan", **PLACE)
    path = Checkpoints(tmp_path).save(1, {})
    fitting.work.checkpoints.keep("no such job", "r", path, {"model": "m"}, 0)
    blobs = database["superduper.artifacts.files"]
    assert blobs.count_documents({}) == 2

    keeping = Housekeeping(
        artifacts,
        fitting.work.checkpoints,
        KeptPredictions(database),
        interval_seconds=0.05,
        min_age_hours=0,
    )
    stop = threading.Event()
    thread = threading.Thread(target=keeping.run, args=(stop,))
    thread.start()
    until(lambda: blobs.count_documents({}) == 1, what="the orphan to be removed")
    until(
        lambda: database["superduper.checkpoints.files"].count_documents({}) == 0,
        what="the checkpoint to be removed",
    )
    stop.set()
    thread.join()
    assert fitting.registry.get("docs", "function", "kept").version == 1
    assert database["superduper.artifacts"].count_documents({}) == 1


def test_every_worker_keeps_house(database: Database[Any]) -> None:
    services = build_worker(database)._services
    assert any(isinstance(service, Housekeeping) for service in services)
