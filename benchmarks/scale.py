"""A million small documents filled by a worker that is killed on the way: pace, memory, ETA."""

import itertools
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.place import resident_mb, server, store, worker

COUNT, SMALL = 1_000_000, 30_000
CHUNK = 10_000
KILLS = 3
POLL_SECONDS = 0.5


class Doubled:
    """A model that costs nothing: what is measured is everything else."""

    def predict(self, values: list[int]) -> list[int]:
        """Twice each value."""
        return [2 * value for value in values]


def run(small: bool) -> dict[str, Any]:
    """Figures for a million documents, or for thirty thousand."""
    return measure(SMALL if small else COUNT)


def measure(count: int, kills: int = KILLS) -> dict[str, Any]:
    """Fill so many documents, killing the worker whenever another part of them is filled."""
    with store() as client:
        native = client._mongo["bench"]["docs"]
        for chunk in _chunks(count):
            native.insert_many(chunk, ordered=False)
        collection = client["bench"]["docs"]
        collection.create_model("doubled", Doubled())
        watcher = collection.create_watcher("w", model="doubled", key="x", target="y")
        figures = _Backfill(client, watcher, count, kills).run()
        figures["blank"] = native.count_documents({"y": {"$exists": False}})
        figures["wrong"] = native.count_documents(
            {"$expr": {"$ne": ["$y", {"$add": ["$x", "$x"]}]}}
        )
    return figures


def _chunks(count: int) -> Iterator[list[dict[str, int]]]:
    numbers = ({"_id": number, "x": number} for number in range(count))
    while chunk := list(itertools.islice(numbers, CHUNK)):
        yield chunk


class _Backfill:
    """One backfill, watched from beside."""

    def __init__(self, client: Any, watcher: Any, count: int, kills: int) -> None:
        self.client = client
        self.watcher = watcher
        self.count = count
        self.kills = kills
        self.server = server(client)
        self.peaks: dict[str, list[float]] = {"worker": [0.0], "store": [0.0]}
        self.told: list[tuple[float, float]] = []
        self.seen = 0

    def run(self) -> dict[str, Any]:
        """See it through; seconds count from the start of the first worker."""
        began = time.perf_counter()
        for part in range(1, self.kills + 2):
            last = part > self.kills
            enough = self.count * part // (self.kills + 1)
            with worker(self.client.address) as process:
                while not self._reached(process, None if last else enough):
                    time.sleep(POLL_SECONDS)
                if not last:
                    process.kill()
            self.peaks = {name: [*peaks, 0.0] for name, peaks in self.peaks.items()}
        ended = time.perf_counter()
        return {
            "documents": self.count,
            "kills": self.kills,
            "documents_per_second": round(self.count / (ended - began)),
            "looked_at": self.seen,
            "peak_mb_by_part": {
                name: [round(peak) for peak in peaks[:-1]] for name, peaks in self.peaks.items()
            },
            "eta_when_half_done": self._eta_beside_truth(ended),
        }

    def _reached(self, process: "subprocess.Popen[bytes]", enough: int | None) -> bool:
        """Look at memory and progress; whether enough is filled, or everything."""
        self._note("worker", resident_mb(process))
        self._note("store", self.server.memory_info().rss / (1 << 20))
        shown = self.watcher.show()
        scan = shown["scan"]
        self.seen = scan.get("seen", 0)
        if scan.get("eta_seconds") is not None and self.seen > self.count / 2:
            self.told.append((time.perf_counter(), scan["eta_seconds"]))
        if enough is None:
            return bool(shown["status"] == "watching")
        return bool(scan.get("filled", 0) >= enough)

    def _note(self, name: str, mb: float) -> None:
        self.peaks[name][-1] = max(self.peaks[name][-1], mb)

    def _eta_beside_truth(self, ended: float) -> dict[str, float] | None:
        """What was told just after half of it, and what it came to; kills make it longer."""
        if not self.told:
            return None
        at, seconds = self.told[0]
        return {"told_seconds": seconds, "took_seconds": round(ended - at, 1)}
