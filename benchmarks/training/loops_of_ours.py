"""The loops of `steps` that are hand-written, and the three doors of the engine."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any, TextIO

import torch

from benchmarks.training.task import BATCH, EPOCHS, LOG_STEPS, LR, Task
from superduper.training import TQDM, JSONLogger, TorchModel, Trainer, train_model
from superduper.training.checkpoints import Checkpointing, Checkpoints
from superduper.training.engine import Engine, Plan, Stage
from superduper.training.graph import Graph, Node
from superduper.training.objective import Objective, StepResult, Term
from superduper.training.policies import NaNStop, Policy
from superduper.training.sources import tensor_source


def _bare(task: Task) -> None:
    optimizer, loss = task.optimizer(), task.loss
    loader = task.loader()
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            loss(task.model(x), y).backward()
            optimizer.step()


def _bare_by_index(task: Task) -> None:
    optimizer, loss = task.optimizer(), task.loss
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(task.x)).split(BATCH):
            optimizer.zero_grad()
            loss(task.model(task.x[rows]), task.y[rows]).backward()
            optimizer.step()


class _Lines(Policy):
    """A line with the loss every so many steps."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def step_finished(self, step: int, result: StepResult) -> None:
        """Write, if it is time."""
        if step % LOG_STEPS == 0:
            losses = {name: float(loss) for name, loss in result.losses.items()}
            self.file.write(json.dumps({"step": step, **losses}) + "\n")


def _engine(task: Task) -> None:
    """As an imputation's fit uses it."""
    stage = Stage(
        Graph([Node("model", task.model, ("x",), ("output",))]),
        Objective([Term("loss", task.loss, ("output", "y"))]),
        tensor_source({"x": task.x, "y": task.y}, BATCH, seed=0),
        {"main": task.optimizer()},
        max_epochs=EPOCHS,
    )
    with (task.folder / "log.jsonl").open("w") as file:
        saving = Checkpointing(Checkpoints(task.folder / "checkpoints"))
        Engine(Plan([stage], 0), [NaNStop(), _Lines(file), TQDM(), saving]).run()


class CrossEntropyTrainer(Trainer):
    """A trainer with the step that the hand-written loops have."""

    def train_batch(self, x: torch.Tensor, y: torch.Tensor) -> Mapping[str, Any]:
        """Train on a batch; answers the sum of its losses."""
        loss = torch.nn.functional.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach() * len(x)}


def _trainer(task: Task) -> None:
    config = {"model_dir": str(task.folder / "run"), "n_epochs": EPOCHS, "seed": 0}
    config |= {"log_interval": LOG_STEPS}
    arguments = (task.loader(), None, task.model, task.optimizer(), config)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        CrossEntropyTrainer(*arguments, policies=[TQDM()]).train()


def _train_model(task: Task) -> None:
    model = TorchModel(task.model, torch.nn.Softmax(-1), task.loss, task.optimizer())
    train_model(
        model,
        task.loader(),
        n_epochs=EPOCHS,
        lr=LR,
        log_path=task.folder / "log",
        checkpoints_path=task.folder / "checkpoints",
        bar=TQDM(),
        lines=JSONLogger(task.folder / "log.jsonl"),
    )


LOOPS = {
    "bare loop, DataLoader": _bare,
    "bare loop, own index batching": _bare_by_index,
    "superduper, engine": _engine,
    "superduper, Trainer": _trainer,
    "superduper, train_model": _train_model,
}
