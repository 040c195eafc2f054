"""A fit over 100,000 documents of the store, from its second epoch on, and loops over tensors."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.place import CLASSES, DIM, Wide, store, until, worker
from superduper.devices import default_device, device_name

BATCH = 64
HIDDEN = 128
EPOCHS = 12
# A tenth of the documents is kept for validation and another one for tests.
VALID = 10

Batches = Callable[[torch.Tensor, torch.Tensor], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def _records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, DIM, generator=generator)
    return x, (x @ torch.randn(DIM, CLASSES, generator=generator)).argmax(1)


def _from_a_loader(x: torch.Tensor, y: torch.Tensor) -> Iterator[Any]:
    return iter(DataLoader(TensorDataset(x, y), BATCH, shuffle=True))


def _by_index(x: torch.Tensor, y: torch.Tensor) -> Iterator[Any]:
    return ((x[rows], y[rows]) for rows in torch.randperm(len(x)).split(BATCH))


def _by_hand(x: torch.Tensor, y: torch.Tensor, batches: Batches) -> tuple[float, float]:
    """Microseconds of CPU and wall per step of a plain loop that validates after each epoch."""
    device = default_device()
    model, loss = Wide(HIDDEN).to(device), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    tenth = len(x) // VALID
    train, valid = slice(2 * tenth, None), slice(0, tenth)
    cpu, wall, steps = time.process_time(), time.perf_counter(), 0
    for _ in range(2):
        model.train()
        for inputs, labels in batches(x[train], y[train]):
            optimizer.zero_grad()
            loss(model(inputs.to(device)), labels.to(device)).backward()
            optimizer.step()
            steps += 1
        model.eval()
        with torch.no_grad():
            for inputs, labels in zip(x[valid].split(BATCH), y[valid].split(BATCH), strict=True):
                loss(model(inputs.to(device)), labels.to(device)).item()
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return spent[0] / steps * 1e6, spent[1] / steps * 1e6


def _cpu_of_children(pid: int) -> float:
    total = 0.0
    for each in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def _ours(x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """The same of a fit, between the first and the last report after its first epoch."""
    marks: list[tuple[float, float, int]] = []
    with store() as client, worker(client.address) as process:
        docs = client["bench"]["docs"]
        started = time.perf_counter()
        for first in range(0, len(x), 1_000):
            rows = zip(x[first : first + 1_000], y[first : first + 1_000].tolist(), strict=True)
            docs.insert_many([{"x": row, "y": label} for row, label in rows])
        inserted = time.perf_counter()
        docs.create_model("network", Wide(HIDDEN))
        docs.create_loss("loss", torch.nn.CrossEntropyLoss())
        imputation = docs.create_imputation(
            model="network",
            model_key="x",
            target_key="y",
            loss="loss",
            batch_size=BATCH,
            max_epochs=EPOCHS,
            patience=EPOCHS,
            seed=0,
            watcher=False,
        )

        def done() -> bool:
            state = imputation.show()
            if state["status"] == "failed":
                raise RuntimeError(state["error"]["message"])
            progress = (state["fit"] or {}).get("progress") or {}
            if progress.get("phase") == "training" and progress["epoch"] >= 1:
                now = (time.perf_counter(), _cpu_of_children(process.pid), progress["done"])
                if not marks or marks[-1][2] != now[2]:
                    marks.append(now)
            return bool(state["status"] == "ready")

        until(done, "the fit", pause=0.05)
        ended = time.perf_counter()
    (wall, cpu, step), (wall_2, cpu_2, step_2) = marks[0], marks[-1]
    return {
        "cpu": (cpu_2 - cpu) / (step_2 - step) * 1e6,
        "wall": (wall_2 - wall) / (step_2 - step) * 1e6,
        "seconds_to_insert": inserted - started,
        "seconds_for_the_whole_fit": ended - inserted,
        "seconds_before_the_second_epoch": wall - inserted,
    }


def run(small: bool) -> dict[str, Any]:
    """Steps per second after the first epoch, as ratios to each loop; CPU time beside wall time."""
    torch.set_num_threads(1)
    count = 10_000 if small else 100_000
    x, y = _records(count)
    loops: dict[str, Batches] = {"TensorDataset": _from_a_loader, "own index batching": _by_index}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}

    def measure_by_hand() -> None:
        for _ in range(2):
            for name, batches in loops.items():
                rounds[name].append(_by_hand(x, y, batches))

    measure_by_hand()
    ours = _ours(x, y)
    measure_by_hand()
    cpu = {name: statistics.median(cpu for cpu, _ in each) for name, each in rounds.items()}
    wall = {name: statistics.median(wall for _, wall in each) for name, each in rounds.items()}
    return {
        "documents": count,
        "device": device_name(default_device()),
        "epochs": EPOCHS,
        "cpu_microseconds_per_step": {**cpu, "ours": ours.pop("cpu")},
        "wall_microseconds_per_step": {**wall, "ours": (own := ours.pop("wall"))},
        "speed_ratio_to": {name: each / own for name, each in wall.items()},
        **ours,
        "load_average": os.getloadavg()[0],
    }
