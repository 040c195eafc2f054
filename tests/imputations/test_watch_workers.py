"""Several workers that fill at once, and workers that are killed."""

import os
import signal
import subprocess
import sys
import threading
from typing import Any

from pymongo.database import Database
from watching import Watching, double

from tests.waiting import until

SERVICE = """
import sys, threading
from superduper.imputations.hosting import open_hosts
from superduper.imputations.imputation import Imputations
from superduper.imputations.watching.watch import WatchService
from superduper.store.artifacts import ArtifactStore
from superduper.store.mongo import connect_mongo
from superduper.store.registry import Registry
from superduper.store.signing import Keyring

database = connect_mongo(sys.argv[1])[sys.argv[2]]
registry = Registry(database, ArtifactStore(database, Keyring.open()))
service = WatchService(database, registry, lambda: open_hosts(registry), Imputations(database))
print("running", flush=True)
service.run(threading.Event())
"""


class Worker:
    """A service in a process of its own, which can be killed."""

    def __init__(self, store_uri: str, database: Database[Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, store_uri, database.name],
            env={**os.environ, "SUPERDUPER_LEASE_SECONDS": "2"},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


class TestWorkers:
    """Several workers, and workers that are killed."""

    def test_two_services_fill_each_document_once(self, watching: Watching, store_uri: str) -> None:
        watching.docs.insert_many({"_id": each, "x": each} for each in range(500))
        watching.live(double)
        seen: list[Any] = []
        with watching.docs.watch() as stream, watching.running(), watching.running():
            watching.docs.insert_many({"_id": each, "x": each} for each in range(500, 700))
            until(lambda: watching.docs.count_documents({"y": {"$exists": True}}) == 700)
            until(lambda: watching.status() == "watching")
            while (event := stream.try_next()) is not None:
                if event["operationType"] == "update":
                    seen.append(event["documentKey"]["_id"])
        assert sorted(seen) == list(range(700))
        assert watching.watcher()["fence"] >= 1

    def test_killed_again_and_again_nothing_is_lost(
        self, watching: Watching, store_uri: str
    ) -> None:
        docs = watching.docs
        docs.insert_many({"_id": each, "x": each} for each in range(1500))
        watching.live(double)
        stop, mine = threading.Event(), set[int]()

        def person() -> None:
            number = 1500
            while not stop.wait(0.01):
                docs.insert_one({"_id": number, "x": number})
                docs.update_one({"_id": number - 7}, {"$set": {"x": -number}})
                if number % 5 == 0:
                    docs.update_one({"_id": number - 3}, {"$set": {"y": "mine"}})
                    mine.add(number - 3)
                if number % 7 == 0:
                    docs.update_one({"_id": number - 2}, {"$unset": {"y": "", "_fill": ""}})
                    mine.discard(number - 2)
                number += 1

        thread = threading.Thread(target=person)
        thread.start()
        try:
            for _ in range(4):
                worker = Worker(store_uri, watching.database)
                before = docs.count_documents({"y": {"$exists": True}})
                until(lambda n=before: docs.count_documents({"y": {"$exists": True}}) > n + 20)  # type: ignore[misc]
                worker.kill()
        finally:
            stop.set()
            thread.join()
        with watching.running():
            until(lambda: docs.count_documents({"y": {"$exists": False}}) == 0)
            until(lambda: watching.status() == "watching")
            until(lambda: not wrong(docs, mine))


def wrong(docs: Any, mine: set[int]) -> list[Any]:
    """Documents that are not as they must be in the end."""
    return [
        document
        for document in docs.find()
        if document["y"] != ("mine" if document["_id"] in mine else document["x"] * 2)
    ]
