"""Inserting one document with 5 active watchers against with none.

A worker that has just started is given a document first, and measured once that one is filled.
"""

import statistics
import time
from collections import defaultdict
from typing import Any

from benchmarks.place import cpu_seconds, server, store, until, vectors, worker

WATCHERS = 5
#: Milliseconds between inserts, and how many inserts make a round.
RHYTHMS = {20: 200, 100: 40}


def _insert_ms(collection: Any, first: int, pause_ms: int, count: int) -> list[float]:
    """Milliseconds of single inserts, at intervals as an application does them."""
    times = []
    for i, document in enumerate(vectors(count), first):
        started = time.perf_counter()
        collection.insert_one({**document, "_id": i})
        times.append((time.perf_counter() - started) * 1000)
        time.sleep(pause_ms / 1000)
    return times


def _ratios(without: list[float], with_watchers: list[float]) -> dict[str, Any]:
    medians = [statistics.median(times) for times in (without, with_watchers)]
    p90s = [statistics.quantiles(times, n=10)[-1] for times in (without, with_watchers)]
    return {
        "inserts": len(without),
        "median_ms": {"no watcher": medians[0], f"{WATCHERS} watchers": medians[1]},
        "p90_ms": {"no watcher": p90s[0], f"{WATCHERS} watchers": p90s[1]},
        "ratio_of_medians": medians[1] / medians[0],
        "ratio_of_p90s": p90s[1] / p90s[0],
    }


class Race:
    """One store, and the same inserts with and without watchers at work."""

    def __init__(self, client: Any) -> None:
        self.address = client.address
        self.native = client._mongo["bench"]["docs"]
        self.server = server(client)
        self.inserted = 0
        self.native.insert_one({"_id": "first", "x": "first"})
        collection = client["bench"]["docs"]
        collection.create_model("length", len)
        for i in range(WATCHERS):
            collection.create_watcher(f"w{i}", model="length", key="x", target=f"y{i}")

    def insert(self, pause_ms: int, count: int) -> tuple[list[float], float]:
        """Milliseconds of each insert, and of the store's CPU for one with all that follows."""
        before = cpu_seconds([self.server])
        times = _insert_ms(self.native, self.inserted, pause_ms, count)
        self.inserted += count
        return times, 1000 * (cpu_seconds([self.server]) - before) / count

    def fill_all(self) -> None:
        """Wait until nothing is missing."""
        filled = {f"y{i}": {"$exists": True} for i in range(WATCHERS)}
        everything = self.native.count_documents({})
        until(lambda: self.native.count_documents(filled) == everything, "the fills", pause=0.2)


def run(small: bool) -> dict[str, Any]:
    """Median and p90 in milliseconds, without and with watchers, in alternating rounds."""
    rounds = 2 if small else 5
    times: dict[tuple[int, bool], list[float]] = defaultdict(list)
    cpu: dict[tuple[int, bool], list[float]] = defaultdict(list)
    with store() as client:
        race = Race(client)

        def insert_all(watched: bool) -> None:
            for pause_ms, count in RHYTHMS.items():
                took, used = race.insert(pause_ms, count // 4 if small else count)
                times[pause_ms, watched] += took
                cpu[pause_ms, watched].append(used)
                if watched:
                    race.fill_all()

        for turn in range(rounds):
            insert_all(watched=False)
            with worker(client.address):
                race.native.insert_one({"_id": f"probe {turn}", "x": "probe"})
                race.fill_all()
                insert_all(watched=True)
    return {
        f"every {pause_ms} ms": {
            **_ratios(times[pause_ms, False], times[pause_ms, True]),
            "store_cpu_ms_per_insert": {
                name: statistics.median(cpu[pause_ms, watched])
                for name, watched in (("no watcher", False), (f"{WATCHERS} watchers", True))
            },
        }
        for pause_ms in RHYTHMS
    }
