"""The loop that every training runs on: stages of epochs of steps, with validation and events.

    plan = Plan([Stage(graph, objective, source, optimizers, validation=source_2)], seed=7)
    Engine(plan, policies=[BestWeights("loss", False)]).run()

A position is four numbers (`Cursor`); together with the states of modules, optimizers, policies
and random generators it is all that is needed to go on later with the same result.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from superduper.training.graph import Graph
from superduper.training.metrics import Means, Metric
from superduper.training.objective import Objective, StepResult
from superduper.training.policies import EVENTS, Policy, StopRun, handlers_of
from superduper.training.randomness import random_state, seed_everything, set_random_state
from superduper.training.sources import Batch, Source


@dataclass(frozen=True)
class Stage:
    """What is trained on what, and for how long at most.

    `validate` measures after every epoch, beside or instead of a pass over `validation`. `describe`
    says in words which records a batch has, for who reads of a step that failed.
    """

    graph: Graph
    objective: Objective
    source: Source
    optimizers: Mapping[str, torch.optim.Optimizer]
    validation: Source | None = None
    validate: Callable[[], Mapping[str, Any]] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    max_epochs: int | None = None
    max_steps: int | None = None
    name: str = "train"
    validate_first: bool = True
    describe: Callable[[torch.Tensor], str] = str


@dataclass(frozen=True)
class Plan:
    """Stages, one after the other, and the seed of everything random in them.

    Without a seed the random generators are left as they are.
    """

    stages: Sequence[Stage]
    seed: int | None


@dataclass
class Cursor:
    """Where a run is: stage, completed epochs of it, completed batches of this epoch, all steps."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    finished: bool = False


class Engine:
    """Runs a plan."""

    def __init__(self, plan: Plan, policies: Sequence[Policy] = ()) -> None:
        self.plan = plan
        self.policies = tuple(policies)
        self.cursor = Cursor()
        self.reason = ""
        self._stop: str | None = None
        self._train = Means()
        self._resumed = False
        self._handlers: dict[str, list[Callable[..., None]]] = {
            event: handlers_of(self.policies, event) for event in EVENTS
        }

    def __repr__(self) -> str:
        at = self.cursor
        end = f", {self.reason}" if at.finished else ""
        return f"Engine(stage {self.stage.name!r}, epoch {at.epoch}, step {at.step}{end})"

    @property
    def stage(self) -> Stage:
        """The stage that the run is in; the last one when it has ended."""
        return self.plan.stages[min(self.cursor.stage, len(self.plan.stages) - 1)]

    @property
    def graph(self) -> Graph:
        """The present stage's graph."""
        return self.stage.graph

    def run(self) -> None:
        """Train until the plan is done or a policy ends it; a finished run is left as it is."""
        if self.cursor.finished:
            return
        if not self._resumed and self.plan.seed is not None:
            seed_everything(self.plan.seed)
        self._emit("run_started")
        while self.cursor.stage < len(self.plan.stages) and self._stop is None:
            self._run_stage(self.stage)
        self.cursor.finished = True
        self.reason = self._stop or "all epochs are done"
        self._emit("run_finished", reason=self.reason)

    def _run_stage(self, stage: Stage) -> None:
        cursor = self.cursor
        first_step = cursor.step if cursor.epoch == 0 and cursor.batch == 0 else None
        if stage.validate_first and first_step is not None and stage.validation is not None:
            self._validate(stage, {})
        while self._stop is None and not self._is_done(stage):
            self._run_epoch(stage)
        if self._stop is None:
            cursor.stage, cursor.epoch, cursor.batch = cursor.stage + 1, 0, 0

    def _is_done(self, stage: Stage) -> bool:
        """Whether a stage has had its epochs, or the whole run its steps."""
        if stage.max_steps is not None and self.cursor.step >= stage.max_steps:
            return True
        return stage.max_epochs is not None and self.cursor.epoch >= stage.max_epochs

    def _run_epoch(self, stage: Stage) -> None:
        cursor = self.cursor
        if cursor.batch == 0:
            self._train = Means()
            self._emit("epoch_started")
            if self._stop is not None:
                return
        stage.graph.train()
        for batch in stage.source.batches(cursor.epoch, start=cursor.batch):
            self._run_step(stage, batch)
            if self._stop is not None or cursor.step == stage.max_steps:
                break
        self._finish_epoch(stage)
        cursor.epoch, cursor.batch = cursor.epoch + 1, 0
        train = self._train.compute()
        metrics = self._validate(stage, train)
        self._emit("epoch_finished", train=train, metrics=metrics)

    def _run_step(self, stage: Stage, batch: Batch) -> None:
        self._emit("step_started", batch=batch)
        try:
            result = self._train_on(stage, batch)
        except Exception as error:
            at, batch_is = self.cursor, stage.describe(batch.index)
            error.add_note(f"This was in step {at.step + 1} (epoch {at.epoch + 1}), on {batch_is}.")
            raise
        self._train.add(result.losses, batch.n)
        self.cursor.batch += 1
        self.cursor.step += 1
        self._emit("step_finished", batch=batch, result=result)

    def _train_on(self, stage: Stage, batch: Batch) -> StepResult:
        return stage.objective.step(stage.graph, batch.frame, batch.n, stage.optimizers)

    def _finish_epoch(self, stage: Stage) -> None:
        stage.objective.finish_epoch(stage.optimizers)

    def _validate(self, stage: Stage, train: Mapping[str, float]) -> dict[str, float]:
        if stage.validation is None and stage.validate is None:
            return {}
        self._emit("validation_started")
        metrics = {} if stage.validation is None else evaluate(stage, stage.validation)
        if stage.validate is not None:
            metrics.update(stage.validate())
        self._emit("validation_finished", train=train, metrics=metrics)
        return metrics

    def _emit(self, event: str, **arguments: Any) -> None:
        """Tell every policy; one that ends the run does not keep the others from hearing it."""
        handlers = self._handlers[event]
        if not handlers:
            return
        cursor = self.cursor
        for handler in handlers:
            try:
                handler(engine=self, epoch=cursor.epoch, step=cursor.step, **arguments)
            except StopRun as stop:
                self._stop = self._stop or str(stop) or type(stop).__name__

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on: plain values and tensors."""
        stage = self.stage
        return {
            "cursor": asdict(self.cursor),
            "stopped": self._stop,
            "train": self._train.state_dict(),
            "graph": stage.graph.state_dict(),
            "optimizers": {name: each.state_dict() for name, each in stage.optimizers.items()},
            "objective": stage.objective.state_dict(),
            "precision": stage.objective.precision.state_dict(),
            "policies": [policy.state_dict() for policy in self.policies],
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: `run` then trains what is left."""
        self.cursor = Cursor(**state["cursor"])
        self._stop = state.get("stopped")
        self._train.load_state_dict(state["train"])
        stage = self.stage
        stage.graph.load_state_dict(state["graph"])
        for name, optimizer in stage.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        stage.objective.load_state_dict(state["objective"])
        stage.objective.precision.load_state_dict(state["precision"])
        for policy, kept in zip(self.policies, state["policies"], strict=True):
            policy.load_state_dict(kept)
        set_random_state(state["random"])
        self._resumed = True


def evaluate(stage: Stage, source: Source) -> dict[str, float]:
    """Losses and metrics of a stage's graph over a source, in evaluation mode.

    What a pass comes to is the objective's to say, see its `summary`.
    """
    means = Means()
    with _evaluation(stage.graph), torch.no_grad():
        for metric in stage.metrics.values():
            metric.reset()
        for batch in source.batches(0):
            result = stage.objective.evaluate(stage.graph, batch.frame, batch.n)
            means.add(result.losses, batch.n)
            for metric in stage.metrics.values():
                metric.update(result.frame, batch)
    measured = {name: metric.compute() for name, metric in stage.metrics.items()}
    return {**stage.objective.summary(means.compute()), **measured}


@contextlib.contextmanager
def _evaluation(graph: Graph) -> Any:
    graph.train(False)
    try:
        yield
    finally:
        graph.train(True)
