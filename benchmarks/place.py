"""Where benchmarks run: an embedded store in a temporary folder, and workers as real processes."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from bson.binary import Binary, BinaryVectorDtype

from superduper.connection import Client
from superduper.store.embedded import attach

DIM = 64
CLASSES = 10
DEADLINE_SECONDS = 1_800


@contextlib.contextmanager
def store() -> Iterator[Client]:
    """A client of an embedded store of its own; no worker."""
    with tempfile.TemporaryDirectory(prefix="superduper-bench-") as folder:
        attachment = attach(folder)
        client = Client(attachment.address, attachment)
        try:
            yield client
        finally:
            client.close()


@contextlib.contextmanager
def worker(address: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker process."""
    process = subprocess.Popen([sys.executable, "-m", "superduper.imputations.work", address])
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def until(holds: Callable[[], bool], what: str, pause: float = 0.02) -> None:
    """Wait until something holds, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(pause)


class Wide(torch.nn.Module):
    """64 inputs to 10 classes, with a hidden layer if `width` is not 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [torch.nn.Linear(DIM, CLASSES)]
        if width:
            layers = [torch.nn.Linear(DIM, width), torch.nn.ReLU(), torch.nn.Linear(width, CLASSES)]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores for a batch."""
        return self.layers(x)

    def postprocess_batch(self, rows: Sequence[torch.Tensor]) -> list[int]:
        """The best class of each row."""
        return torch.stack(tuple(rows)).argmax(-1).tolist()


def vectors(count: int) -> list[dict[str, Any]]:
    """Documents with a vector as MongoDB's drivers store them."""
    numbers = np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)
    return [
        {"_id": i, "x": Binary.from_vector(row.tolist(), BinaryVectorDtype.FLOAT32)}
        for i, row in enumerate(numbers)
    ]


def refill(collection: Any, documents: list[dict[str, Any]]) -> None:
    """The collection with these documents and nothing else."""
    collection.drop()
    for start in range(0, len(documents), 1_000):
        collection.insert_many(documents[start : start + 1_000])


def server(client: Client) -> psutil.Process:
    """The process of the store that a client uses."""
    port = client._mongo.address[1]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(
                each.laddr.port == port and each.status == psutil.CONN_LISTEN
                for each in process.net_connections("tcp")
            ):
                return process
    raise LookupError(f"nobody listens at port {port}")


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """The CPU that processes have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def resident_mb(process: "subprocess.Popen[bytes]") -> float:
    """Memory of a process and all its children, in MiB."""
    parent = psutil.Process(process.pid)
    total = 0
    for each in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total / 2**20
