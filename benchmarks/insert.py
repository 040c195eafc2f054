"""Inserting one document with 5 active watchers against with none.

A worker that has just started is given a document first, and measured once that one is filled.
"""

import statistics
import time
from typing import Any

from benchmarks.place import store, until, vectors, worker

WATCHERS = 5


def _insert_ms(collection: Any, count: int, first: int) -> list[float]:
    """Milliseconds of single inserts, one every 20 ms, as an application does them."""
    times = []
    for i, document in enumerate(vectors(count)):
        started = time.perf_counter()
        collection.insert_one({**document, "_id": first + i})
        times.append((time.perf_counter() - started) * 1000)
        time.sleep(0.02)
    return times


def run(small: bool) -> dict[str, Any]:
    """Median and p90 in milliseconds, without and with watchers, in alternating rounds."""
    rounds, count = (2, 50) if small else (5, 200)
    with store() as client:
        collection = client["bench"]["docs"]
        native = client._mongo["bench"]["docs"]
        native.insert_one({"_id": "first", "x": "first"})
        collection.create_model("length", len)
        for i in range(WATCHERS):
            collection.create_watcher(f"w{i}", model="length", key="x", target=f"y{i}")
        filled = {f"y{i}": {"$exists": True} for i in range(WATCHERS)}
        without: list[float] = []
        with_watchers: list[float] = []

        def fill_all() -> None:
            everything = native.count_documents({})
            until(lambda: native.count_documents(filled) == everything, "the fills", pause=0.2)

        for turn in range(rounds):
            without += _insert_ms(native, count, turn * 10**6)
            with worker(client.address):
                native.insert_one({"_id": f"probe {turn}", "x": "probe"})
                fill_all()
                with_watchers += _insert_ms(native, count, turn * 10**6 + 10**5)
                fill_all()
    medians = [statistics.median(times) for times in (without, with_watchers)]
    p90s = [statistics.quantiles(times, n=10)[-1] for times in (without, with_watchers)]
    return {
        "inserts": len(without),
        "median_ms": {"no watcher": medians[0], f"{WATCHERS} watchers": medians[1]},
        "p90_ms": {"no watcher": p90s[0], f"{WATCHERS} watchers": p90s[1]},
        "ratio_of_medians": medians[1] / medians[0],
        "ratio_of_p90s": p90s[1] / p90s[0],
    }
