"""What a fit is for the engine: its stage and policies, from settings and parts. For the child."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superduper.errors import InvalidInput
from superduper.imputations.fitting.folds import Fold as FoldName
from superduper.imputations.fitting.measures import Answers, FittedLoss, apply, metrics_of
from superduper.imputations.fitting.trainer import (
    FoldLoader,
    Summaries,
    TrainerObjective,
    config_of,
    made_trainer,
    stage_of,
    with_arguments,
)
from superduper.serving import collate
from superduper.serving.predictor import Predictor
from superduper.training.by_name import made_of, policy_of
from superduper.training.cache import Fold
from superduper.training.engine import Stage
from superduper.training.graph import Frame, Graph, Node
from superduper.training.metrics import Metric
from superduper.training.named_policies import NamedPolicies
from superduper.training.objective import Objective, Term
from superduper.training.optimizers import optimizer_of
from superduper.training.policies import Policy
from superduper.training.precision import MixedPrecision
from superduper.training.sources import IndexSource
from superduper.training.trainer import Trainer

if TYPE_CHECKING:
    from superduper.training.engine import Engine


@dataclass(frozen=True)
class Settings:
    """The part of an imputation's specification that training needs."""

    optimizer: Any
    lr: Any
    batch_size: int
    max_epochs: int
    max_steps: int | None
    patience: int
    watch: str
    seed: int
    mixed_precision: str | None = None
    processes: int | None = None
    trainer: Mapping[str, Any] | None = None
    policies: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Parts:
    """The registered objects that a fit is made of; policies and optimizers by name."""

    loss: Any
    metrics: Mapping[str, Any]
    trainer: Any
    optimizers: Mapping[str, Any] = field(default_factory=dict)
    policies: Mapping[str, Any] = field(default_factory=dict)


class StageMaker:
    """Makes the stage of a fit, for the model that is trained and for those it is compared with."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        folds: Mapping[FoldName, Fold],
        target_paths: tuple[str, ...],
        device: torch.device,
        folder: Path,
    ) -> None:
        self.settings = settings
        self.parts = parts
        self.folds = folds
        self.target_paths = target_paths
        self.device = device
        self.folder = folder
        self.trainer: Trainer | None = None
        self.lr = self._rate()

    def stage(self, predictor: Predictor, validated: FoldName) -> Stage:
        """A stage that trains a model and validates it on a fold."""
        graph = Graph([Node("model", predictor.model, ("x",), ("output",), apply)])
        graph.to(self.device)
        dtype = collate.floating_dtype(predictor.model)
        sources = (
            self.source(self.folds["train"], dtype, self.settings.seed),
            self.source(self.folds[validated], dtype, None),
        )
        metrics = metrics_of(
            self.parts.metrics, Answers(predictor, self.folds[validated], self.target_paths)
        )
        make = self._plain_stage if self.parts.trainer is None else self._trainer_stage
        return make(graph, sources, validated, metrics)

    def _plain_stage(
        self,
        graph: Graph,
        sources: tuple[IndexSource, IndexSource],
        validated: FoldName,
        metrics: dict[str, Metric],
    ) -> Stage:
        return Stage(
            graph=graph,
            objective=Objective(
                [Term("loss", FittedLoss(self.parts.loss), ("output", "y"))],
                MixedPrecision(self.settings.mixed_precision, self.device),
            ),
            source=sources[0],
            optimizers={"main": self._optimizer(graph)},
            validation=sources[1],
            metrics=metrics,
            max_epochs=self.settings.max_epochs,
            max_steps=self.settings.max_steps,
        )

    def _trainer_stage(
        self,
        graph: Graph,
        sources: tuple[IndexSource, IndexSource],
        validated: FoldName,
        metrics: dict[str, Metric],
    ) -> Stage:
        settings, model = self.settings, graph.modules["model"]
        kind, given = self.parts.trainer, settings.trainer or {}
        make = getattr(kind, "make_optimizer", None)
        optimizer = None if make is None else make(model, self._initial_rate)
        loaders = (
            FoldLoader(self.folds["train"], sources[0]),
            FoldLoader(self.folds[validated], sources[1]),
        )
        config = config_of(self.folder, settings, given.get("arguments") or {})
        self.trainer = made_trainer(
            kind, loaders, model, optimizer or self._optimizer(graph), config
        )
        return stage_of(
            self.trainer,
            self.parts.loss,
            outputs=bool(metrics),
            graph=graph,
            source=sources[0],
            validation=sources[1],
            metrics=metrics,
            max_epochs=settings.max_epochs,
            max_steps=settings.max_steps,
        )

    def source(self, fold: Fold, dtype: torch.dtype | None, seed: int | None) -> IndexSource:
        """The batches of a fold on the device; in random order, if there is a seed."""
        device, arguments = self.device, self.parts.trainer is not None

        def gather(index: torch.Tensor) -> Frame:
            frame = fold.gather(index, pinned=device.type == "cuda")
            placed = {name: collate.place(part, device, dtype) for name, part in frame.items()}
            return with_arguments(placed) if arguments else placed

        size = self.settings.batch_size
        return IndexSource(fold.n, gather, size, seed, join_single=seed is not None)

    # Optimizer and policies ------------------------------------------------------------------

    @property
    def _initial_rate(self) -> float:
        return float(self.settings.lr if self.lr is None else self.lr.value)

    def _optimizer(self, graph: Graph) -> torch.optim.Optimizer:
        spec = self.settings.optimizer
        registered = self.parts.optimizers.get(spec if isinstance(spec, str) else spec["name"])
        return optimizer_of(spec, graph.parameters(), self._initial_rate, registered)

    def _rate(self) -> Any:
        """The schedule of the learning rate; None for a number."""
        lr = self.settings.lr
        if not isinstance(lr, Mapping):
            return None
        policy = self._policy(lr, ())
        if not hasattr(policy, "value"):
            raise InvalidInput(
                f"lr={lr['name']!r} carries no value: give one like Exponential, and pass "
                "everything else in policies"
            )
        return policy

    def _policy(self, named: Mapping[str, Any], optimizers: Any) -> Any:
        name, arguments = str(named["name"]), named.get("arguments") or {}
        if name not in self.parts.policies:
            return policy_of(name, arguments, optimizers)
        made = made_of(name, self.parts.policies[name], arguments)
        if not isinstance(made, Policy):
            raise InvalidInput(
                f"policy {name!r} is a {type(made).__name__}: derive it from "
                "superduper.training.Policy"
            )
        return made

    def policies(self, stage: Stage) -> list[Policy]:
        """What follows the training because the imputation asks for it."""
        optimizers = tuple(stage.optimizers.values())
        named: dict[str, Any] = {} if self.lr is None else {"lr": self.lr}
        for number, spec in enumerate(self.settings.policies, 1):
            policy = self._policy(spec, optimizers)
            if hasattr(policy, "value"):
                raise InvalidInput(
                    f"policy {spec['name']!r} carries a value that nothing takes: pass it as lr"
                )
            named[f"{number} {spec['name']}"] = policy
        found: list[Policy] = []
        if self.trainer is not None:
            assert isinstance(stage.objective, TrainerObjective)
            found.append(Summaries(self.trainer, stage.objective.steps))
        if named:
            found.append(NamedPolicies(named, measured=True))
        if self.lr is not None:
            found.append(Rates(self.lr))
        return found


class Rates(Policy):
    """Gives the optimizers the learning rate that a schedule has for an epoch."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def epoch_started(self, engine: "Engine") -> None:
        """Set it."""
        for optimizer in engine.stage.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.value
