"""Filling documents that are there, against two hand-written loops on the same store."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pymongo import UpdateOne

from benchmarks.place import DIM, Wide, refill, store, until, vectors, worker
from superduper.imputations.fill import Fill, update_of
from superduper.imputations.provenance import fill_record, input_hash

BATCH = 500


def _guarded(document: dict[str, Any], y: int) -> UpdateOne:
    record = fill_record(
        imputation="w", version=1, at=0, inputs=input_hash([document["x"]]), value=y
    )
    return update_of(Fill(document["_id"], {"x": document["x"]}, "y", y, record))


def _blind(document: dict[str, Any], y: int) -> UpdateOne:
    return UpdateOne({"_id": document["_id"]}, {"$set": {"y": y}})


def _by_hand(
    collection: Any, model: torch.nn.Module, update: Callable[[dict[str, Any], int], UpdateOne]
) -> tuple[float, float]:
    """Find, forward in batches, bulk_write; answers seconds in all and in the forward."""
    torch.set_num_threads(1)
    started, forward = time.perf_counter(), 0.0
    batch: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal forward
        joined = b"".join(bytes(document["x"])[2:] for document in batch)
        before = time.perf_counter()
        with torch.inference_mode():
            x = torch.from_numpy(np.frombuffer(joined, np.float32).reshape(-1, DIM).copy())
            labels = model(x).argmax(-1).tolist()
        forward += time.perf_counter() - before
        pairs = zip(batch, labels, strict=True)
        collection.bulk_write([update(document, y) for document, y in pairs], ordered=False)
        batch.clear()

    for document in collection.find({"y": {"$exists": False}}, {"x": 1}, batch_size=BATCH):
        batch.append(document)
        if len(batch) == BATCH:
            flush()
    if batch:
        flush()
    return time.perf_counter() - started, forward


def _ours(client: Any, count: int, width: int) -> dict[str, float]:
    """Seconds from the declaration on, and documents per second once it is under way."""
    collection = client["bench"]["docs"]
    collection.create_model(f"wide{width}", Wide(width))
    started = time.perf_counter()
    watcher = collection.create_watcher("w", model=f"wide{width}", key="x", target="y")
    marks: list[tuple[float, int]] = []

    def done() -> bool:
        state = watcher.show()
        marks.append((time.perf_counter(), state["scan"].get("filled", 0)))
        return bool(state["status"] == "watching")

    until(done, "the backfill", pause=0.1)
    assert client._mongo["bench"]["docs"].count_documents({"y": {"$exists": True}}) == count
    first = next(mark for mark in marks if mark[1] > 0)
    last = marks[-1]
    watcher.delete()
    return {
        "seconds": last[0] - started,
        "documents_per_second": (last[1] - first[1]) / (last[0] - first[0]),
    }


def run(small: bool) -> dict[str, Any]:
    """Documents per second of each, and ours as a ratio of each hand-written loop."""
    count = 5_000 if small else 50_000
    documents = vectors(count)
    found: dict[str, Any] = {"documents": count}
    with store() as client:
        native = client._mongo["bench"]["docs"]
        rates: dict[str, float] = {}
        for name, update in (("by hand, guarded", _guarded), ("by hand, blind", _blind)):
            refill(native, documents)
            seconds, forward = _by_hand(native, Wide(0), update)
            rates[name] = count / seconds
            found[f"forward share, {name}"] = forward / seconds
        with worker(client.address):
            for width in (0, 2048):
                refill(native, documents)
                ours = _ours(client, count, width)
                rates[f"ours, width {width}"] = ours["documents_per_second"]
                found[f"seconds from the declaration, width {width}"] = ours["seconds"]
    found["documents_per_second"] = {name: round(rate) for name, rate in rates.items()}
    found["ratio_to_guarded"] = rates["ours, width 0"] / rates["by hand, guarded"]
    found["ratio_to_blind"] = rates["ours, width 0"] / rates["by hand, blind"]
    found["ratio_width_2048_to_0"] = rates["ours, width 2048"] / rates["ours, width 0"]
    return found
