"""From insert to filled: milliseconds at steady rates of inserts."""

import statistics
import threading
import time
from typing import Any

from benchmarks.place import Wide, cpu_seconds, server, store, until, vectors, worker

RATES = (20, 200)
SECONDS = 30
DRAIN_SECONDS = 60


def run(small: bool) -> dict[str, Any]:
    """For each rate p50, p90 and p99 in milliseconds, seen by a change stream of our own."""
    with store() as client, worker(client.address):
        collection = client["bench"]["docs"]
        client._mongo["bench"]["docs"].insert_one({"_id": "first"})
        collection.create_model("linear", Wide(0))
        watcher = collection.create_watcher("w", model="linear", key="x", target="y")
        until(lambda: watcher.status == "watching", "the watcher")
        _at_rate(client, 20, 20)  # whatever is done only once is done
        seconds = 3 if small else SECONDS
        return {f"{rate} a second": _at_rate(client, rate, rate * seconds) for rate in RATES}


def _at_rate(client: Any, rate: int, count: int) -> dict[str, Any]:
    """Insert at a steady rate, however long one insert takes, and see when each is filled."""
    native = client._mongo["bench"]["docs"]
    native.delete_many({})
    inserted: dict[int, float] = {}
    filled: dict[int, float] = {}
    ended = threading.Event()

    def follow(stream: Any) -> None:
        while len(filled) < count and not ended.is_set():
            change = stream.try_next()
            if change is not None and change["operationType"] == "update":
                filled[change["documentKey"]["_id"]] = time.perf_counter()

    changed = {"$project": {"operationType": 1, "documentKey": 1}}
    with native.watch([changed], max_await_time_ms=200) as stream:
        follower = threading.Thread(target=follow, args=(stream,))
        follower.start()
        before = cpu_seconds([server(client)])
        began = time.perf_counter()
        for number, document in enumerate(vectors(count)):
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            inserted[document["_id"]] = time.perf_counter()
            native.insert_one(document)
        took = time.perf_counter() - began
        follower.join(timeout=DRAIN_SECONDS)
        ended.set()
        follower.join()
    busy = (cpu_seconds([server(client)]) - before) / took
    times = sorted((filled[each] - inserted[each]) * 1000 for each in filled)
    cuts = statistics.quantiles(times, n=100)
    return {
        "inserts": count,
        "filled": len(filled),
        "inserts_per_second": round(count / took, 1),
        "store_cpu_seconds_per_second": round(busy, 2),
        "milliseconds": {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": times[-1]},
    }
