"""`Trainer(train_loader, validate_loader, model, optimizer, config).train()`.

A subclass says what a step does and what an epoch comes to; the engine does the rest: the loop,
checkpoints, going on after a stop. Everything about a run is kept in one folder, `model_dir`.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from superduper.devices import device_of
from superduper.errors import InvalidInput
from superduper.training.batch_results import (
    Results,
    mean_over,
    merge_add_level,
    zip_dicts,
)
from superduper.training.checkpoints import Checkpointing, Checkpoints
from superduper.training.configs import run_config
from superduper.training.database_log import DatabaseLogger
from superduper.training.distributed import GroupEngine, HandedBatches, engine_of, shared_by
from superduper.training.engine import Engine, Plan, Stage, evaluate
from superduper.training.graph import Graph, Node
from superduper.training.group import Group
from superduper.training.interrupts import SaveOnInterrupt
from superduper.training.loaders import LoaderSource, number_in_epoch
from superduper.training.multiple_optimizers import MultipleOptimizers
from superduper.training.named_policies import NamedPolicies
from superduper.training.optimizers import check_trained
from superduper.training.policies import NaNStop, Policy
from superduper.training.precision import compile_module
from superduper.training.run_folder import RunFolder
from superduper.training.run_record import RunRecord, describe_data
from superduper.training.trainer_objective import BatchObjective
from superduper.training.trainer_records import (
    EpochWeights,
    FirstCheckpoint,
    RunRecords,
    Schedulers,
)


class Trainer:
    """Trains a model on one loader and measures it on another.

    The model returns a distribution (`torch.distributions`) of the labels; a subclass that trains
    in another way overrides `train_batch` and `evaluate_batch`. `parent` is a run's folder or a
    file of weights to begin with; `test_loader` is measured once training has ended.
    """

    def __init__(
        self,
        train_loader: Any,
        validate_loader: Any,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | MultipleOptimizers,
        config: Mapping[str, Any] | None = None,
        *,
        test_loader: Any = None,
        policies: Sequence[Policy] = (),
        schedulers: Sequence[Any] = (),
        parent: Any = None,
    ) -> None:
        self.train_loader = train_loader
        self.validate_loader = validate_loader
        self.test_loader = test_loader
        self.model = model
        self.optimizer = optimizer
        self.policies = tuple(policies)
        self.schedulers = tuple(schedulers)
        self.parent = parent
        self.config = run_config(config)
        self.folder = RunFolder(self.config["model_dir"])
        self._check()
        if self.config["device"]:
            self.model.to(device_of(self.config["device"]))
        if self.config["compile"]:
            compile_module(self.model, self.config["compile"])
        self._objective = self._steps()
        self._records = RunRecords(
            self.folder, self._objective, self.summarize_epoch, self.config["log_interval"]
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.folder})"

    def _check(self) -> None:
        """Raise InvalidInput for parts that do not fit together."""
        if not isinstance(self.model, torch.nn.Module):
            raise InvalidInput(f"the model {self.model!r:.80} is no instance of a Module")
        trained = [each for each in self.model.parameters() if each.requires_grad]
        if not trained:
            raise InvalidInput(f"{type(self.model).__name__} has no parameters to train")
        check_trained(self._optimizers(), trained)
        for policy in self.policies:
            if not isinstance(policy, Policy):
                raise InvalidInput(f"the policy {policy!r:.80} is no instance of a Policy")

    # What a subclass may override.

    @classmethod
    def make_optimizer(
        cls, model: torch.nn.Module, lr: float
    ) -> torch.optim.Optimizer | MultipleOptimizers | None:
        """What trains a model where nobody gives an optimizer: in the fit of an imputation.

        None leaves it to the imputation's `optimizer`.
        """
        return None

    def train_batch(self, *batch: Any) -> Mapping[str, Any]:
        """A step of training on a batch; answers sums over the batch."""
        log_prob = self._log_prob(*batch)
        loss = -log_prob.mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"log_prob": log_prob.sum()}

    def evaluate_batch(self, *batch: Any) -> Mapping[str, Any]:
        """What a batch measures, as sums over the batch; called without gradients."""
        return {"log_prob": self._log_prob(*batch).sum()}

    def summarize_epoch(
        self, train_results: list[Results], validate_results: list[Results], epoch: int
    ) -> Mapping[str, Any]:
        """Sum an epoch up from what its steps returned; the answer is printed and kept.

        Epochs count from 1. Where several values are printed for a key, they are in a dict:
        `{"log_prob": {"train": -1.2, "validate": -1.3}}`.
        """
        summary = merge_add_level(
            train=mean_over(train_results, self._objective.train_n),
            validate=mean_over(validate_results, self._objective.validate_n),
        )
        self.add_tb_scalars(summary, epoch)
        return summary

    # What a subclass may use.

    zip_dicts = staticmethod(zip_dicts)
    merge_add_level = staticmethod(merge_add_level)

    def add_tb_scalars(self, results: Mapping[str, Any], epoch: int) -> None:
        """Write `{metric: {"train": value, "validate": value}}` for TensorBoard, in one chart."""
        levels: dict[str, dict[str, float]] = {}
        for metric, values in results.items():
            grouped = values if isinstance(values, Mapping) else {"epochs": values}
            for level, value in grouped.items():
                levels.setdefault(level, {})[metric] = float(value)
        for level, scalars in levels.items():
            self._records.tensorboard.add(level, scalars, epoch)

    # The run.

    def train(self) -> dict[str, Any]:
        """Train until all epochs are done; in the folder of an earlier run, go on with that one.

        Answers the run's record, which is also in `run.json`.
        Raises InvalidInput if the folder holds another run: other settings, model or data. Nothing
        in it is removed then.
        """
        record = RunRecord(self.folder, self.config)
        with record.locked():
            checkpoints = Checkpoints(self.folder.checkpoints)
            interrupts = SaveOnInterrupt(checkpoints)
            stage = self.stage()
            state = checkpoints.latest()
            if state is None and self.folder.epochs():
                raise InvalidInput(
                    f"the run in {self.folder.path} has no checkpoint to go on from: its weights "
                    "can be the parent of another run"
                )
            record.begin(self.model, self._data(), self.parent)
            loggers = [each for each in self.policies if isinstance(each, DatabaseLogger)]
            with interrupts, self._recorded(record), self._shared(stage) as group:
                plan = Plan([stage], self.config["seed"])
                engine = engine_of(plan, self._run_policies(checkpoints, interrupts), group)
                if state is not None:
                    self._go_on(engine, state)
                before = engine.cursor.step
                engine.run()
                if engine.cursor.step == before:
                    print(f"{self.folder.path}: nothing is left to train, {engine.reason}")
                test = None if self.test_loader is None else self.test()
                record.finish(self.model, engine.reason, self._records.history, test)
                for logger in loggers:
                    logger.note(record.content, self.config)
        return record.content

    def test(self, loader: Any = None) -> dict[str, float]:
        """What `evaluate_batch` measures on the test loader, per record."""
        stage = self.stage()
        self._objective.begin_validation()
        source = LoaderSource(loader or self.test_loader, self.config["seed"], "test")
        return evaluate(stage, source)

    def _shared(self, stage: Stage) -> AbstractContextManager[Group | None]:
        """The other processes of this training, if the config asks for some."""
        return shared_by(self.config["processes"], stage.graph, _help, self._without_data())

    def _without_data(self) -> "Trainer":
        """A copy for another process, which is handed each batch: it knows the sizes of data."""
        copied = copy.copy(self)
        copied.train_loader = _Sizes.of(self.train_loader)
        copied.validate_loader = _Sizes.of(self.validate_loader)
        copied.test_loader = None
        copied.policies = copied.schedulers = ()
        copied._objective = copied._steps()
        del copied._records
        return copied

    def _steps(self) -> BatchObjective:
        return BatchObjective(self.train_batch, self.evaluate_batch, self.config["mixed_precision"])

    def _go_on(self, engine: Engine, state: Mapping[str, Any]) -> None:
        try:
            engine.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise InvalidInput(
                f"the checkpoint in {self.folder.path} is of another optimizer, or of other "
                f"policies: {error}"
            ) from error

    @contextmanager
    def _recorded(self, record: RunRecord) -> Iterator[None]:
        """Keep how a run ended that did not end well."""
        try:
            yield
        except BaseException as error:
            record.fail(error, self._records.history)
            raise
        finally:
            self._records.close()
            for policy in self.policies:
                if hasattr(policy, "close"):
                    policy.close()

    def stage(self) -> Stage:
        """What the engine is given: the steps, the data, the optimizers."""
        seed = self.config["seed"]
        validation = None
        if self.validate_loader is not None:
            validation = LoaderSource(self.validate_loader, seed, "validate")
        return Stage(
            graph=Graph([Node("model", self.model, (), ())]),
            objective=self._objective,
            source=LoaderSource(self.train_loader, seed, "train"),
            optimizers=self._optimizers(),
            validation=validation,
            max_epochs=self.config["n_epochs"],
            validate_first=False,
            describe=number_in_epoch,
        )

    def _run_policies(self, checkpoints: Checkpoints, interrupts: Policy) -> list[Policy]:
        """In the order that matters: first look, then record, then save, then leave."""
        config = self.config
        return [
            *([NaNStop()] if config["nan_stop"] else []),
            self._records,
            *self._own_policies(),
            Schedulers(self.schedulers),
            EpochWeights(self.folder, self.model, config["save_interval"], config["n_epochs"]),
            FirstCheckpoint(checkpoints),
            Checkpointing(checkpoints, config["checkpoint_interval"]),
            interrupts,
        ]

    def _own_policies(self) -> list[Policy]:
        """The policies that were given, which hear in a trainer what they hear elsewhere."""
        if not self.policies:
            return []
        named = {
            f"{number} {type(policy).__name__}": policy
            for number, policy in enumerate(self.policies, 1)
        }
        return [NamedPolicies(named, self.validate_loader is not None, first_epoch=1)]

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if isinstance(self.optimizer, MultipleOptimizers):
            return dict(self.optimizer.optimizers)
        return {"optimizer": self.optimizer}

    def _data(self) -> dict[str, dict[str, Any]]:
        """Number of records and hash of each part of the data."""
        loaders = {
            "train": self.train_loader,
            "validate": self.validate_loader,
            "test": self.test_loader,
        }
        return {
            name: describe_data(loader, name, self.config["hash_data"])
            for name, loader in loaders.items()
            if loader is not None
        }

    def _log_prob(self, *batch: Any) -> torch.Tensor:
        *features, labels = batch
        if not features:
            raise InvalidInput(
                "the loader's batches have one part: override train_batch and evaluate_batch, or "
                "give batches of features and labels"
            )
        predicted = self.model(*features)
        if not hasattr(predicted, "log_prob"):
            raise InvalidInput(
                f"{type(self.model).__name__} returned a {type(predicted).__name__}: return a "
                "torch.distributions distribution, or override train_batch and evaluate_batch"
            )
        log_prob: torch.Tensor = predicted.log_prob(labels)
        return log_prob


class _Sizes:
    """A loader without its data: what a step may ask for is how much there is."""

    def __init__(self, n: int, batch_size: int | None, batches: int) -> None:
        self.dataset = range(n)
        self.batch_size = batch_size
        self._batches = batches

    @classmethod
    def of(cls, loader: Any) -> "_Sizes | None":
        """The sizes of a loader; None where they are not known."""
        try:
            dataset = getattr(loader, "dataset", loader)
            return cls(len(dataset), getattr(loader, "batch_size", None), len(loader))
        except TypeError:  # a stream
            return None

    def __len__(self) -> int:
        return self._batches


def _help(group: Group, trainer: Trainer) -> None:
    """What another process of a training does."""
    trainer.model.to(group.device)
    if trainer.config["compile"]:
        compile_module(trainer.model, trainer.config["compile"])
    stage = Stage(
        Graph([Node("model", trainer.model, (), ())]),
        trainer._objective,
        HandedBatches(),
        trainer._optimizers(),
    )
    GroupEngine(Plan([stage], trainer.config["seed"]), [], group).run()
