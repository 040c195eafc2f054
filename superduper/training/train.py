"""`train_model`: a model with its own training step, trained by the engine that trains everything.

train_model(model, batch_iter, n_epochs=10, lr=1e-3, checkpoints_path="checkpoints")
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy
import torch

from superduper.errors import InvalidInput
from superduper.training.checkpoints import Checkpointing, Checkpoints
from superduper.training.distributed import GroupEngine, HandedBatches, engine_of, shared_by
from superduper.training.engine import Engine, Plan, Stage
from superduper.training.epoch_logs import TensorBoardLogger
from superduper.training.graph import Frame, Graph, Node
from superduper.training.group import Group
from superduper.training.interrupts import SaveOnInterrupt
from superduper.training.named_policies import NamedPolicies
from superduper.training.objective import Objective, StepResult
from superduper.training.policies import NaNStop, Policy
from superduper.training.train_batches import TrainBatches, batches_of
from superduper.training.values import Constant

logger = logging.getLogger(__name__)


def train_model(
    model: Any,
    batch_iter: Any,
    n_epochs: float | None,
    lr: Any,
    log_path: str | Path | None = None,
    checkpoints_path: str | Path | None = None,
    validate: Callable[[], Mapping[str, Any]] | None = None,
    *,
    frequency: int | None = None,
    processes: int | None = None,
    **policies: Any,
) -> None:
    """Train a model on batches for some epochs; with None, until a policy ends it.

    `model` has `do_train_step(*inputs, lr, **values)`, as `TorchModel` has. `batch_iter` is an
    `Infinite`, or anything that gives an epoch's batches each time it is gone through. `lr` and
    `policies` are policies or plain values; the present values of those that have one are passed
    to every step by name. `validate` returns metrics by name, after each epoch.

    TensorBoard's event files go to `log_path`. With `checkpoints_path` a training that was stopped
    goes on from where it was; one that has ended trains nothing more. The two newest checkpoints
    are kept and, with `frequency`, every so many epochs' one for good.

    With `processes` each batch is shared by so many processes, each with a GPU of its own if the
    model is on one. Raises InvalidInput for a model that cannot be copied to them.
    """
    if frequency is not None and (not isinstance(frequency, int) or frequency < 1):
        raise InvalidInput(f"frequency must be a number of epochs, not {frequency!r}")
    named = _policies({"lr": lr, **policies})
    if log_path is not None:
        named["log_path"] = TensorBoardLogger(log_path)
    following = NamedPolicies(named, measured=validate is not None)
    batches = batches_of(batch_iter)
    origin = Origin(model, batches)
    stage = _stage(model, batches, following, n_epochs, validate)
    watching: list[Policy] = [origin, NaNStop(), following]
    with contextlib.ExitStack() as opened:
        opened.callback(following.close)
        checkpoints = None
        if checkpoints_path is not None:
            checkpoints = Checkpoints(Path(checkpoints_path).expanduser())
            interrupt = opened.enter_context(SaveOnInterrupt(checkpoints))
            watching += [Checkpointing(checkpoints, lasting_epochs=frequency), interrupt]
        group = opened.enter_context(shared_by(processes, stage.graph, _help, model))
        engine = engine_of(Plan([stage], None), watching, group)
        if checkpoints is not None:
            _go_on(engine, origin, checkpoints)
        opened.enter_context(batches.opened())
        engine.run()
    logger.info("training ended: %s", engine.reason)


def _help(group: Group, model: Any) -> None:
    """What another process of a training does."""
    graph = _graph(model)
    graph.to(group.device)
    stage = Stage(graph, ModelObjective(model), HandedBatches(), _optimizers(model))
    GroupEngine(Plan([stage], None), [], group).run()


def _go_on(engine: Engine, origin: "Origin", checkpoints: Checkpoints) -> None:
    """Load the newest checkpoint, if there is one."""
    state = checkpoints.latest()
    if state is not None:
        origin.check(state["policies"][0], checkpoints.folder)
        engine.load_state_dict(state)
        logger.info("going on after step %d of %s", engine.cursor.step, checkpoints.folder)


def _policies(given: Mapping[str, Any]) -> dict[str, Policy]:
    named = {}
    for name, value in given.items():
        if isinstance(value, type) and issubclass(value, Policy):
            raise InvalidInput(f"{name!r} is the class {value.__name__}: give an instance of it")
        named[name] = value if isinstance(value, Policy) else Constant(value)
    if not hasattr(named["lr"], "value"):
        raise InvalidInput(f"lr is a {type(given['lr']).__name__}, which carries no value")
    return named


def _stage(
    model: Any,
    batches: TrainBatches,
    following: NamedPolicies,
    n_epochs: float | None,
    validate: Callable[[], Mapping[str, Any]] | None,
) -> Stage:
    if isinstance(model, type):
        raise InvalidInput(f"the model is the class {model.__name__}: give an instance of it")
    if not callable(getattr(model, "do_train_step", None)):
        raise InvalidInput(f"{type(model).__name__} has no method do_train_step: see TorchModel")
    if validate is not None and not callable(validate):
        raise InvalidInput(
            f"validate is a {type(validate).__name__}: give a function that returns metrics by name"
        )
    return Stage(
        graph=_graph(model),
        objective=ModelObjective(model, following.values),
        source=batches,
        optimizers=_optimizers(model),
        validate=lambda: _measured(validate),
        max_epochs=_limit(n_epochs),
        describe=batches.describe,
    )


def _graph(model: Any) -> Graph:
    return Graph([Node(name, each, (), ()) for name, each in _modules(model).items()])


def _limit(n_epochs: float | None) -> int | None:
    if n_epochs is None or n_epochs == math.inf:
        return None
    if not isinstance(n_epochs, int | float) or not n_epochs >= 0 or n_epochs != int(n_epochs):
        raise InvalidInput(f"n_epochs must be a whole number of epochs, not {n_epochs!r}")
    return int(n_epochs)


def _measured(validate: Callable[[], Mapping[str, Any]] | None) -> Mapping[str, Any]:
    metrics = {} if validate is None else validate()
    if not isinstance(metrics, Mapping):
        raise InvalidInput(f"validate returned a {type(metrics).__name__}, not a dictionary")
    return metrics


def _modules(model: Any) -> dict[str, torch.nn.Module]:
    """The model, if it is a module itself, or else its attributes that are modules with a state."""
    if isinstance(model, torch.nn.Module):
        return {"model": model}
    return {
        name: each
        for name, each in _attributes(model)
        if isinstance(each, torch.nn.Module) and each.state_dict()
    }


def _optimizers(model: Any) -> dict[str, torch.optim.Optimizer]:
    return {
        name: each for name, each in _attributes(model) if isinstance(each, torch.optim.Optimizer)
    }


def _attributes(model: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(model, "__dict__", {}).items()


class ModelObjective(Objective):
    """A step is the model's own `do_train_step`, given the policies' values."""

    def __init__(self, model: Any, values: Callable[[], dict[str, Any]] = dict) -> None:
        super().__init__(())
        self.model = model
        self.values = values
        self._kept = not isinstance(model, torch.nn.Module) and hasattr(model, "load_state_dict")

    def step(
        self, graph: Graph, frame: Frame, n: int, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> StepResult:
        """One step of training, as the model has it."""
        loss = plain_loss(self.model.do_train_step(*frame["batch"], **self.values()))
        if self.part is not None:
            loss, n = self.part.mean(loss), self.part.whole
        return StepResult(_losses(loss), {**frame, "loss": loss}, n)

    def told(self) -> dict[str, Any]:
        """The policies' values."""
        return self.values()

    def hear(self, word: Any) -> None:
        """Take the values for the next step."""
        self.values = lambda: word

    def state_dict(self) -> dict[str, Any]:
        """What the model itself keeps; modules and optimizers are kept apart."""
        return dict(self.model.state_dict()) if self._kept else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        if self._kept:
            self.model.load_state_dict(state)

    def finish_epoch(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        """Let a model that accumulates gradients use those that are left."""
        if hasattr(self.model, "flush"):
            self.model.flush()


def plain_loss(loss: Any) -> Any:
    """What a step returned, as a number, an array of numbers, or a dictionary of these."""
    if type(loss) is float:
        return loss
    if isinstance(loss, Mapping):
        return {str(name): plain_loss(value) for name, value in loss.items()}
    if isinstance(loss, torch.Tensor):
        loss = loss.detach().cpu()
    try:
        array = numpy.asarray(loss, dtype=numpy.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"do_train_step returned a {type(loss).__name__}: it must return the loss, as a "
            "number, an array, or a dictionary of these"
        ) from error
    return array if array.ndim else float(array)


def _losses(loss: Any) -> dict[str, float]:
    losses = loss if isinstance(loss, Mapping) else {"loss": loss}
    return {
        name: value if isinstance(value, float) else float(numpy.mean(value))
        for name, value in losses.items()
    }


class Origin(Policy):
    """What a checkpoint is of: the model's structure and the data; and the place in the data."""

    def __init__(self, model: Any, batches: TrainBatches) -> None:
        self.batches = batches
        self.hashes = {"model": structure_hash(model), "data": batches.fingerprint}

    def check(self, state: Mapping[str, Any], folder: Path) -> None:
        """Raise InvalidInput if a checkpoint is of another model or of other data."""
        for what, own in self.hashes.items():
            kept = state["hashes"][what]
            if kept != own and None not in (kept, own):
                raise InvalidInput(
                    f"the checkpoints in {folder} are of another {what}: theirs has the hash "
                    f"{kept}, this one {own}; train with what they are of, or choose another "
                    "checkpoints_path"
                )

    def state_dict(self) -> dict[str, Any]:
        """The hashes, and where the batches are."""
        return {"hashes": self.hashes, "batches": self.batches.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.batches.load_state_dict(state["batches"])


def structure_hash(model: Any) -> str:
    """SHA-256 over names, shapes and datatypes of a model's weights, and kinds of optimizers."""
    digest = sha256()
    for name, module in sorted(_modules(model).items()):
        for key, value in module.state_dict().items():
            form = (tuple(value.shape), str(value.dtype)) if hasattr(value, "shape") else ()
            digest.update(repr((name, key, form)).encode())
    for name, optimizer in sorted(_optimizers(model).items()):
        digest.update(repr((name, type(optimizer).__name__)).encode())
    return digest.hexdigest()
