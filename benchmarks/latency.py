"""From insert to filled: milliseconds at a steady rate of inserts."""

import statistics
import threading
import time
from typing import Any

from benchmarks.place import Wide, store, until, vectors, worker

RATE = 20


def run(small: bool) -> dict[str, Any]:
    """p50, p90 and p99 in milliseconds, seen by a change stream of the benchmark's own."""
    count = 60 if small else 1_000
    with store() as client, worker(client.address):
        collection = client["bench"]["docs"]
        native = client._mongo["bench"]["docs"]
        native.insert_one({"_id": "first"})
        collection.create_model("linear", Wide(0))
        watcher = collection.create_watcher("w", model="linear", key="x", target="y")
        until(lambda: watcher.status == "watching", "the watcher")
        inserted: dict[int, float] = {}
        filled: dict[int, float] = {}

        def follow(stream: Any) -> None:
            while len(filled) < count:
                change = stream.next()
                if change["operationType"] == "update":
                    filled[change["documentKey"]["_id"]] = time.perf_counter()

        with native.watch() as stream:
            follower = threading.Thread(target=follow, args=(stream,))
            follower.start()
            for document in vectors(count):
                inserted[document["_id"]] = time.perf_counter()
                native.insert_one(document)
                time.sleep(1 / RATE)
            follower.join(timeout=60)
    times = sorted((filled[i] - inserted[i]) * 1000 for i in filled)
    cuts = statistics.quantiles(times, n=100)
    return {
        "inserts": count,
        "filled": len(filled),
        "rate_per_second": RATE,
        "milliseconds": {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": times[-1]},
    }
