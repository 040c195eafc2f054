"""A worker: fits imputations and keeps fields filled, until it is told to stop.

`python -m superduper.imputations.work ADDRESS [DATABASE ...]`; without databases it works for every
database of the address that holds something of ours, and finds new ones as they come.
"""

import contextlib
import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

from superduper.imputations.fitting.job import FitContext, fit
from superduper.imputations.hosting import open_hosts
from superduper.imputations.housekeeping import Housekeeping
from superduper.imputations.imputation import Imputations
from superduper.imputations.predict_job import PREDICT, PredictContext, predict_later
from superduper.imputations.watching.watch import WatchService
from superduper.jobs.kernel import conceal
from superduper.jobs.worker import Worker
from superduper.store.artifacts import ArtifactStore
from superduper.store.logs import log_to_stderr
from superduper.store.mongo import connect_mongo, require_replica_set
from superduper.store.registry import Registry
from superduper.store.signing import Keyring

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
STOP_SECONDS = 30.0
# While one thread prepares a batch, those that talk to the store must not wait 5 ms, which is
# Python's default, each time that an answer has come: it is the store that has nothing to do then.
SWITCH_SECONDS = 0.001
MARKS = tuple(f"superduper.{each}" for each in ("components", "imputations", "jobs", "tokens"))
NOT_USERS = ("admin", "config", "local")


def build_worker(database: Database[Any]) -> Worker:
    """A worker for one database: it runs fits and watches collections."""
    artifacts = ArtifactStore(database, Keyring.open())
    registry = Registry(database, artifacts)
    imputations = Imputations(database)
    context = FitContext(database, registry, artifacts, imputations)
    watch = WatchService(database, registry, functools.partial(open_hosts, registry), imputations)
    predicting = PredictContext(database, registry)
    house = Housekeeping(artifacts, context.checkpoints, predicting.kept)
    handlers = {
        "fit": functools.partial(fit, work=context),
        PREDICT: functools.partial(predict_later, work=predicting),
    }
    return Worker(database, handlers, [watch, house])


class Workers:
    """One worker for each database, in threads of this process."""

    def __init__(self, client: MongoClient[Any], databases: Sequence[str] = ()) -> None:
        self._client = client
        self._fixed = tuple(databases)
        self._workers: dict[str, tuple[Worker, threading.Thread]] = {}
        self._asked = False

    def stop(self, *_: object) -> None:
        """Ask `run` to drain and return; only a flag, so that a signal handler may call it."""
        self._asked = True

    def run(self) -> None:
        """Work until `stop` is called."""
        try:
            while not self._asked:
                try:
                    self._look()
                except PyMongoError as error:
                    logger.warning("databases cannot be listed just now: %s", error)
                time.sleep(LOOK_SECONDS)
        finally:
            for worker, _thread in self._workers.values():
                worker.stop()
            for _worker, thread in self._workers.values():
                thread.join(STOP_SECONDS)

    def _look(self) -> None:
        """Start a worker for each database that has become one of ours."""
        names = self._fixed or [
            name
            for name in self._client.list_database_names()
            if name not in self._workers and name not in NOT_USERS and self._has_mark(name)
        ]
        for name in names:
            if name not in self._workers:
                worker = build_worker(self._client[name])
                thread = threading.Thread(target=worker.run, name=f"worker {name}", daemon=True)
                self._workers[name] = (worker, thread)
                thread.start()
                logger.info("working for database %s", name)

    def _has_mark(self, name: str) -> bool:
        return bool(self._client[name].list_collection_names(filter={"name": {"$in": list(MARKS)}}))


def work(address: str, databases: Sequence[str] = ()) -> None:
    """Work until SIGTERM or SIGINT, then drain.

    Raises NotReady if the address does not answer or is not a replica set.
    """
    conceal()
    sys.setswitchinterval(SWITCH_SECONDS)
    with contextlib.closing(connect_mongo(address)) as client:
        require_replica_set(client)
        workers = Workers(client, databases)
        _on_signals(workers.stop)
        workers.run()


def _on_signals(stop: Callable[..., None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


if __name__ == "__main__":
    log_to_stderr()
    work(sys.argv[1], sys.argv[2:])
