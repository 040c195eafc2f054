"""A registered Trainer subclass as the way an imputation is trained. For the child."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from superduper.errors import InvalidInput
from superduper.imputations.fitting.measures import FittedLoss, apply
from superduper.training.batch_results import flattened
from superduper.training.cache import Fold
from superduper.training.engine import Stage
from superduper.training.graph import Frame, Graph
from superduper.training.multiple_optimizers import MultipleOptimizers
from superduper.training.objective import Objective, StepResult
from superduper.training.policies import Policy
from superduper.training.sources import IndexSource
from superduper.training.trainer import Trainer
from superduper.training.trainer_objective import BatchObjective

Optimizers = torch.optim.Optimizer | MultipleOptimizers


class FoldLoader:
    """The batches of a fold, as a trainer's methods may look at them; `dataset` has a length."""

    def __init__(self, fold: Fold, source: IndexSource) -> None:
        self.dataset = range(fold.n)
        self.batch_size = source.batch_size
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self._source.batches(0):
            yield batch.frame["batch"]


def with_arguments(frame: Frame) -> Frame:
    """A frame that also has what a trainer's steps are called with: inputs, then the target."""
    x = frame["x"]
    return {**frame, "batch": (*(x if isinstance(x, tuple) else (x,)), frame["y"])}


def made_trainer(
    kind: Any,
    loaders: tuple[FoldLoader, FoldLoader],
    model: torch.nn.Module,
    optimizer: Optimizers,
    config: Mapping[str, Any],
) -> Trainer:
    """An instance of a registered trainer.

    Raises InvalidInput for a class that is no Trainer.
    """
    check_trainer(kind)
    made: Trainer = kind(*loaders, model, optimizer, dict(config))
    return made


def check_trainer(kind: Any) -> None:
    """Raise InvalidInput for a class that is no Trainer."""
    if not isinstance(kind, type) or not issubclass(kind, Trainer):
        name = getattr(kind, "__name__", type(kind).__name__)
        raise InvalidInput(
            f"the trainer {name} is no subclass of superduper.training.Trainer: derive it from that"
        )


def config_of(folder: Path, settings: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a trainer finds in `self.config`: the fit's settings, and its own arguments."""
    own = {
        "model_dir": str(folder / "trainer"),
        "seed": settings.seed,
        "n_epochs": settings.max_epochs,
        "mixed_precision": settings.mixed_precision,
    }
    return {**given, **own}


class TrainerObjective(Objective):
    """A trainer's steps; validation also has the model's outputs, for metrics and a loss."""

    def __init__(self, steps: BatchObjective, loss: Any, outputs: bool) -> None:
        super().__init__(())
        self.steps = steps
        self._loss = None if loss is None else FittedLoss(loss)
        self._outputs = outputs or loss is not None
        self._sum = getattr(loss, "reduction", "mean") == "sum"

    def step(
        self, graph: Graph, frame: Frame, n: int, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> StepResult:
        """One step of training, as the trainer has it."""
        self.steps.part = self.part
        return self.steps.step(graph, frame, n, optimizers)

    def state_dict(self) -> dict[str, Any]:
        """The results of the epoch that is being trained."""
        return self.steps.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.steps.load_state_dict(state)

    def evaluate(self, graph: Graph, frame: Frame, n: int) -> StepResult:
        """What the trainer measures of a batch, and the registered loss."""
        result = self.steps.evaluate(graph, frame, n)
        if not self._outputs:
            return result
        output = apply(graph.nodes[0].module, frame["x"])
        losses = dict(result.losses)
        if self._loss is not None:
            loss = self._loss(output, frame["y"]).detach()
            loss = loss if loss.ndim == 0 else loss.mean()
            losses["loss"] = loss / n if self._sum else loss
        return StepResult(losses, {**frame, "output": output}, n)

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Every sum, per record."""
        return dict(means)


def stage_of(trainer: Trainer, loss: Any, *, outputs: bool, **changes: Any) -> Stage:
    """The trainer's stage on a fit's data."""
    stage = trainer.stage()
    assert isinstance(stage.objective, BatchObjective)
    objective = TrainerObjective(stage.objective, loss, outputs)
    return replace(stage, objective=objective, validate_first=True, **changes)


class Summaries(Policy):
    """Collects what a trainer's steps return, and has it sum up each epoch."""

    def __init__(self, trainer: Trainer, steps: BatchObjective) -> None:
        self.trainer = trainer
        self.steps = steps
        self.latest: dict[str, float] = {}

    def epoch_started(self) -> None:
        """Forget the epoch before."""
        self.steps.begin_training()

    def validation_started(self) -> None:
        """Forget the validation before."""
        self.steps.begin_validation()

    def validation_finished(self, epoch: int) -> None:
        """Sum the epoch up; before the first there is nothing to sum up."""
        if epoch == 0:
            return
        steps = self.steps
        summary = self.trainer.summarize_epoch(steps.train_results, steps.validate_results, epoch)
        if type(self.trainer).summarize_epoch is not Trainer.summarize_epoch:
            self.latest = flattened(summary or {})
        steps.begin_training()
