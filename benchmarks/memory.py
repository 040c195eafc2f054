"""Peak memory of a worker while it fills 10,000 and 100,000 documents: it should be flat."""

from typing import Any

from benchmarks.place import Wide, refill, resident_mb, store, until, vectors, worker


def _peak_mb(client: Any, count: int) -> float:
    """The highest resident memory of the worker and its children, in MiB."""
    refill(client._mongo["bench"]["docs"], vectors(count))
    collection = client["bench"]["docs"]
    collection.create_model("linear", Wide(0))
    peak = 0.0
    with worker(client.address) as process:
        watcher = collection.create_watcher("w", model="linear", key="x", target="y")

        def done() -> bool:
            nonlocal peak
            peak = max(peak, resident_mb(process))
            return bool(watcher.status == "watching")

        until(done, "the backfill", pause=0.1)
        watcher.delete()
    return peak


def run(small: bool) -> dict[str, Any]:
    """Peaks in MiB and their ratio."""
    counts = (1_000, 10_000) if small else (10_000, 100_000)
    with store() as client:
        peaks = {count: _peak_mb(client, count) for count in counts}
    return {
        "peak_mb": {f"{count} documents": round(mb) for count, mb in peaks.items()},
        "ratio": peaks[counts[1]] / peaks[counts[0]],
    }
