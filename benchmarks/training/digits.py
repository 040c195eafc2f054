"""Time of a small convolutional network to 98 % on digits: `Trainer`, the engine, and by hand."""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.training.loops_of_ours import CrossEntropyTrainer
from superduper.training import TargetStop
from superduper.training.engine import Engine, Plan, Stage
from superduper.training.graph import Graph, Node
from superduper.training.metrics import StreamMetric
from superduper.training.objective import Objective, Term
from superduper.training.policies import NaNStop, Policy, StopRun
from superduper.training.sources import tensor_source

BATCH = 32
LR = 1e-3
GOAL = 0.98
MOST_EPOCHS = 60
TRAINED = 1_437  # of 1,797


def _data() -> tuple[torch.Tensor, ...]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (
        *(part[order[:TRAINED]] for part in (x, y)),
        *(part[order[TRAINED:]] for part in (x, y)),
    )


def network(seed: int) -> torch.nn.Module:
    """Two convolutions and a linear layer."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 16, 10),
    )


def _by_hand(seed: int) -> int:
    """The loop as it is written by hand; answers the epochs that it took."""
    x, y, x_valid, y_valid = _data()
    model, loss = network(seed), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    torch.manual_seed(seed)
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)
    for epoch in range(1, MOST_EPOCHS + 1):
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss(model(inputs), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = (model(x_valid).argmax(1) == y_valid).float().mean().item()
        if right >= GOAL:
            return epoch
    raise RuntimeError(f"{GOAL} was not reached in {MOST_EPOCHS} epochs")


class _Measured(CrossEntropyTrainer):
    def evaluate_batch(self, x: torch.Tensor, y: torch.Tensor) -> Mapping[str, Any]:
        return {"accuracy": (self.model(x).argmax(1) == y).sum()}


def _trainer(seed: int) -> int:
    """`Trainer` with all that it writes: checkpoints, weights of every epoch, tables, hashes."""
    x, y, x_valid, y_valid = _data()
    model = network(seed)
    with (
        tempfile.TemporaryDirectory(prefix="superduper-bench-") as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        record = _Measured(
            DataLoader(TensorDataset(x, y), BATCH, shuffle=True),
            DataLoader(TensorDataset(x_valid, y_valid), len(x_valid)),
            model,
            torch.optim.Adam(model.parameters(), lr=LR),
            {"model_dir": f"{folder}/run", "n_epochs": MOST_EPOCHS, "seed": seed},
            policies=[TargetStop("accuracy", GOAL)],
        ).train()
    return len(record["history"])


class _Accuracy:
    def reset(self) -> None:
        self.right = self.n = 0

    def update(self, output: torch.Tensor, y: torch.Tensor) -> None:
        self.right += int((output.argmax(1) == y).sum())
        self.n += len(y)

    def compute(self) -> float:
        return self.right / self.n


class _Enough(Policy):
    def epoch_finished(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.epochs = epoch
        if metrics["accuracy"] >= GOAL:
            raise StopRun("good enough")


def _engine(seed: int) -> int:
    """The engine as an imputation's fit uses it, with the same Adam as by hand."""
    x, y, x_valid, y_valid = _data()
    model, stop = network(seed), _Enough()
    stage = Stage(
        Graph([Node("model", model, ("x",), ("output",))]),
        Objective([Term("loss", torch.nn.CrossEntropyLoss(), ("output", "y"))]),
        tensor_source({"x": x, "y": y}, BATCH, seed),
        {"main": torch.optim.Adam(model.parameters(), lr=LR)},
        validation=tensor_source({"x": x_valid, "y": y_valid}, len(x_valid)),
        metrics={"accuracy": StreamMetric(_Accuracy())},
        max_epochs=MOST_EPOCHS,
    )
    Engine(Plan([stage], seed), [NaNStop(), stop]).run()
    return stop.epochs


LOOPS: dict[str, Callable[[int], int]] = {
    "by hand": _by_hand,
    "Trainer": _trainer,
    "engine": _engine,
}


def run(small: bool) -> dict[str, Any]:
    """Seconds of CPU to the goal and per epoch, by turns over several seeds; medians.

    A ratio is of runs that followed on one another, so other load falls on both.
    """
    torch.set_num_threads(1)
    for loop in LOOPS.values():
        loop(0)  # what is done once a process is nobody's time
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in LOOPS}
    for seed in range(2 if small else 9):
        for name in [*LOOPS][seed % 3 :] + [*LOOPS][: seed % 3]:
            cpu, wall = time.process_time(), time.perf_counter()
            epochs = LOOPS[name](seed)
            found[name].append((time.process_time() - cpu, time.perf_counter() - wall, epochs))

    def medians(value: Callable[[tuple[float, float, int]], float]) -> dict[str, float]:
        return {name: round(statistics.median(map(value, each)), 4) for name, each in found.items()}

    def ratios(value: Callable[[tuple[float, float, int]], float]) -> dict[str, float]:
        return {
            name: round(
                statistics.median(
                    value(mine) / value(hand)
                    for mine, hand in zip(each, found["by hand"], strict=True)
                ),
                3,
            )
            for name, each in found.items()
        }

    return {
        "goal": GOAL,
        "seeds": len(found["by hand"]),
        "cpu_seconds": medians(lambda each: each[0]),
        "wall_seconds": medians(lambda each: each[1]),
        "epochs": medians(lambda each: each[2]),
        "cpu_seconds_per_epoch": medians(lambda each: each[0] / each[2]),
        "cpu_ratio_to_the_goal": ratios(lambda each: each[0]),
        "cpu_ratio_per_epoch": ratios(lambda each: each[0] / each[2]),
        "load_average": os.getloadavg()[0],
    }
