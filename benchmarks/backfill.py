"""Filling documents that are there, against two hand-written loops on the same store.

Every contestant does the whole collection anew, in rounds whose order is turned round each time,
because the store's history grows. Ours has its model loaded, as the loops have theirs; the clock
runs from the moment its scan begins. Seconds are medians; CPU is the store's and the clients'.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from pymongo import UpdateOne

from benchmarks.place import DIM, Wide, cpu_seconds, refill, server, store, until, vectors, worker
from superduper.imputations.fill import Fill, update_of
from superduper.imputations.provenance import fill_record, input_hash

BATCH = 500
FRAME = 256
WIDTHS = (0, 2048)
ROUNDS = 3
POLL_SECONDS = 0.2
GUARDED, BLIND = "by hand, guarded", "by hand, blind"

Took = dict[str, float]
"""Seconds, and seconds of CPU of the store and of its clients."""


def _guarded(document: dict[str, Any], y: int) -> UpdateOne:
    record = fill_record(
        imputation="w", version=1, at=0, inputs=input_hash([document["x"]]), value=y
    )
    return update_of(Fill(document["_id"], {"x": document["x"]}, "y", y, record))


def _blind(document: dict[str, Any], y: int) -> UpdateOne:
    return UpdateOne({"_id": document["_id"]}, {"$set": {"y": y}})


def _forward(model: torch.nn.Module, vectors_as_stored: Sequence[Any]) -> list[int]:
    joined = b"".join(bytes(vector)[2:] for vector in vectors_as_stored)
    with torch.inference_mode():
        x = torch.from_numpy(np.frombuffer(joined, np.float32).reshape(-1, DIM).copy())
        return model(x).argmax(-1).tolist()  # type: ignore[no-any-return]


def _by_hand(
    collection: Any, model: torch.nn.Module, update: Callable[[dict[str, Any], int], UpdateOne]
) -> None:
    """Find, forward in batches, bulk_write."""
    batch: list[dict[str, Any]] = []

    def flush() -> None:
        labels = _forward(model, [document["x"] for document in batch])
        pairs = zip(batch, labels, strict=True)
        collection.bulk_write([update(document, y) for document, y in pairs], ordered=False)
        batch.clear()

    for document in collection.find({"y": {"$exists": False}}, {"x": 1}, batch_size=BATCH):
        batch.append(document)
        if len(batch) == BATCH:
            flush()
    if batch:
        flush()


def _forward_seconds(width: int, documents: list[dict[str, Any]]) -> float:
    """What the model itself takes for all documents, in frames as a model host gets them."""
    model, started = Wide(width), time.process_time()
    for start in range(0, len(documents), FRAME):
        _forward(model, [each["x"] for each in documents[start : start + FRAME]])
    return time.process_time() - started


class Race:
    """One store, one worker with its models loaded, and the documents that everybody fills."""

    def __init__(self, client: Any, process: Any, documents: list[dict[str, Any]]) -> None:
        self.collection = client["bench"]["docs"]
        self.native = client._mongo["bench"]["docs"]
        self.states = client._mongo["bench"]["superduper.imputations"]
        self.leases = client._mongo["bench"]["superduper.watchers"]
        self.documents = documents
        self.here = psutil.Process()
        self.server = server(client)
        self.worker = psutil.Process(process.pid)
        for width in WIDTHS:
            self.collection.create_model(f"wide{width}", Wide(width))

    def by_hand(self, update: Callable[[dict[str, Any], int], UpdateOne]) -> Took:
        """One run of a hand-written loop."""
        model = Wide(0)
        refill(self.native, self.documents)
        return self._timed([self.here], lambda: _by_hand(self.native, model, update))

    def ours(self, width: int) -> Took:
        """One run of a watcher; its model is loaded by a first run over few documents."""
        refill(self.native, self.documents[:10])
        self._watch(width, lambda: self._wait("done"))
        refill(self.native, self.documents)

        def run() -> Took:
            self._wait("running", "done")
            clients = [self.worker, *self.worker.children(recursive=True)]
            return self._timed(clients, lambda: self._wait("done"))

        return self._watch(width, run)

    def _watch(self, width: int, run: Callable[[], Any]) -> Any:
        watcher = self.collection.create_watcher("w", model=f"wide{width}", key="x", target="y")
        try:
            return run()
        finally:
            watcher.delete()
            # Whoever still led the collection would take the next `refill` for lost history.
            until(self._is_free, "the worker to let go of the collection")

    def _is_free(self) -> bool:
        return self.leases.find_one({"_id": "stream:docs"})["owner"] is None

    def _wait(self, *states: str) -> None:
        def reached() -> bool:
            found = self.states.find_one({"_id": "docs/w"}, {"scan.state": 1})
            return found["scan"].get("state") in states

        until(reached, f"the scan to be {' or '.join(states)}", pause=POLL_SECONDS)

    def _timed(self, clients: list[psutil.Process], run: Callable[[], None]) -> Took:
        before = cpu_seconds([self.server]), cpu_seconds(clients)
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        after = cpu_seconds([self.server]), cpu_seconds(clients)
        assert self.native.count_documents({"y": {"$exists": True}}) == len(self.documents)
        return {"seconds": seconds, "store": after[0] - before[0], "clients": after[1] - before[1]}


def _medians(runs: list[Took]) -> Took:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def run(small: bool) -> dict[str, Any]:
    """Documents per second of each, and ours as a ratio of each hand-written loop."""
    torch.set_num_threads(1)
    count, rounds = (5_000, 1) if small else (50_000, ROUNDS)
    documents = vectors(count)
    took: dict[str, list[Took]] = {}
    with store() as client, worker(client.address) as process:
        race = Race(client, process, documents)
        contestants: list[tuple[str, Callable[[], Took]]] = [
            (GUARDED, lambda: race.by_hand(_guarded)),
            ("ours, width 0", lambda: race.ours(0)),
            ("ours, width 2048", lambda: race.ours(2048)),
            (BLIND, lambda: race.by_hand(_blind)),
        ]
        for _ in range(rounds):
            for name, contestant in contestants:
                took.setdefault(name, []).append(contestant())
            contestants.reverse()
    return _result(took, documents)


def _result(took: dict[str, list[Took]], documents: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {name: _medians(runs) for name, runs in took.items()}
    guarded, blind = middle[GUARDED], middle[BLIND]
    ours, wide = (middle[f"ours, width {width}"] for width in WIDTHS)
    count = len(documents)
    forward = _forward_seconds(2048, documents) - _forward_seconds(0, documents)
    return {
        "documents": count,
        "rounds": len(took[GUARDED]),
        "documents_per_second": {
            name: round(count / each["seconds"]) for name, each in middle.items()
        },
        "each_round": {
            name: [round(count / run["seconds"]) for run in runs] for name, runs in took.items()
        },
        "store_cpu_microseconds_per_document": {
            name: round(each["store"] / count * 1e6) for name, each in middle.items()
        },
        "client_cpu_microseconds_per_document": {
            name: round(each["clients"] / count * 1e6) for name, each in middle.items()
        },
        "ratio_to_guarded": guarded["seconds"] / ours["seconds"],
        "ratio_to_blind": blind["seconds"] / ours["seconds"],
        "ratio_width_2048_to_0": ours["seconds"] / wide["seconds"],
        "forward_seconds_of_width_2048": forward,
        "ratio_width_2048_to_0_less_its_forward": ours["seconds"] / (wide["seconds"] - forward),
    }
