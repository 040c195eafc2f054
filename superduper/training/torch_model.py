"""`TorchModel`: an architecture with what trains it and what makes predictions of its outputs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load

from superduper.devices import device_of
from superduper.errors import InvalidInput
from superduper.training.optimizers import check_trained, forget_gradients
from superduper.training.precision import MixedPrecision, compile_module
from superduper.training.run_folder import write_whole
from superduper.training.weights import copy_of_state, weights_blob


class TorchModel:
    """Trains on batches of arrays and predicts from them; arrays go in and come out.

    `activation` makes a prediction of the architecture's output, `criterion(output, target)` a
    loss: a scalar, or a dictionary of scalars of which `loss`, or else the sum, is minimised.
    `optimizer` is a class, or any callable that takes the parameters, or an optimizer of them.

    With `accumulate` the gradients of so many steps make one step of the optimizer; `clip` is the
    greatest norm of the gradients; `mixed_precision`, "bf16" or "fp16", is what it trains in;
    `compile` has torch compile the architecture, with its default backend or the one that is named.
    The model is trained on `device`, by default a GPU if there is one.
    """

    def __init__(
        self,
        architecture: torch.nn.Module,
        activation: Callable[..., Any],
        criterion: Callable[..., Any],
        optimizer: Callable[..., torch.optim.Optimizer] | torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        clip: float | None = None,
        mixed_precision: str | None = None,
        compile: bool | str = False,
        device: str | torch.device | None = None,
    ) -> None:
        if accumulate < 1:
            raise InvalidInput(f"accumulate must be at least 1, not {accumulate}")
        if clip is not None and not clip > 0:
            raise InvalidInput(f"clip is the greatest norm of the gradients, over 0, not {clip}")
        _check_parts(architecture, activation=activation, criterion=criterion)
        self.device = device_of(device or "auto")
        self.precision = MixedPrecision(mixed_precision, self.device)
        self.architecture = architecture.to(self.device)
        self.activation = activation
        self.criterion = (
            criterion.to(self.device) if isinstance(criterion, torch.nn.Module) else criterion
        )
        self.optimizer = _optimizer(optimizer, architecture)
        self.accumulate = accumulate
        self.clip = clip
        self.compile = compile
        if compile:
            compile_module(architecture, compile)
        self._waiting = 0
        self._weight = next(each for each in architecture.parameters() if each.is_floating_point())

    def __repr__(self) -> str:
        n = sum(each.numel() for each in self.architecture.parameters())
        return (
            f"{type(self).__name__}({type(self.architecture).__name__} with {n:,} weights, "
            f"{type(self.optimizer).__name__}, on {self.device})"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come to be in another process, where it has to be compiled anew."""
        self.__dict__.update(state)
        if self.compile:
            compile_module(self.architecture, self.compile)

    def do_train_step(self, *inputs: Any, lr: float | None = None, **settings: Any) -> Any:
        """Train on a batch, the last input being the target; answer the loss.

        `lr` and `settings` are set in the optimizer first.
        Raises InvalidInput for a batch that the model cannot take.
        """
        self._set(settings if lr is None else {"lr": lr, **settings})
        if not self.architecture.training:
            self.architecture.train()
        *arguments, target = self._tensors(inputs)
        with _telling(inputs), self.precision.forward():
            losses = self.criterion(self.architecture(*arguments), target)
        if self._waiting == 0:
            forget_gradients(self.optimizer)
        total = _total(losses)
        self.precision.backward(total if self.accumulate == 1 else total / self.accumulate)
        self._waiting += 1
        if self._waiting == self.accumulate:
            self._step()
        return _arrays(losses)

    def do_inf_step(self, *inputs: Any) -> Any:
        """Predictions for a batch, in evaluation mode and in the precision of the weights."""
        self.architecture.eval()
        with torch.no_grad(), _telling(inputs):
            outputs = self.architecture(*self._tensors(inputs))
            return _arrays(self.activation(outputs))

    def flush(self) -> None:
        """Step with the gradients of fewer batches than `accumulate`, if some wait."""
        if self._waiting:
            for parameter in self.architecture.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.accumulate / self._waiting)
            self._step()

    def save(self, path: str | Path) -> None:
        """Save the weights as safetensors."""
        target = Path(path).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, weights_blob(copy_of_state(self.architecture)))

    def load(self, path: str | Path) -> None:
        """Take over weights that were saved.

        Raises InvalidInput if they are those of another architecture, or no weights at all.
        """
        try:
            self.architecture.load_state_dict(load(Path(path).expanduser().read_bytes()))
        except OSError as error:
            raise InvalidInput(f"cannot read weights from {path}: {error}") from error
        except Exception as error:
            raise InvalidInput(f"{path} has no weights of this model: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        """The gradients that wait for more batches; modules and optimizers are kept apart."""
        scale = self.precision.state_dict()
        if not self._waiting:
            return {"waiting": 0, "gradients": {}, "scale": scale}
        gradients = {
            name: parameter.grad
            for name, parameter in self.architecture.named_parameters()
            if parameter.grad is not None
        }
        return {"waiting": self._waiting, "gradients": gradients, "scale": scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._waiting = state["waiting"]
        self.precision.load_state_dict(state["scale"])
        for name, parameter in self.architecture.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter)

    def _step(self) -> None:
        if self.clip is not None:
            self.precision.unscale(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.architecture.parameters(), self.clip)
        self.precision.step(self.optimizer)
        self._waiting = 0

    def _set(self, settings: Mapping[str, Any]) -> None:
        for group in self.optimizer.param_groups:
            for name, value in settings.items():
                if name not in group:
                    raise InvalidInput(
                        f"do_train_step is given {name!r}, of which {type(self.optimizer).__name__}"
                        " knows nothing: override do_train_step to use it"
                    )
                group[name] = value

    def _tensors(self, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
        """Inputs as tensors: fractions in the model's type, whole numbers as int64."""
        dtype = self._weight.dtype
        return [_tensor(each, self.device, dtype) for each in inputs]


def _tensor(value: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    tensor = value if isinstance(value, torch.Tensor) else _shared(numpy.asarray(value))
    if tensor.is_floating_point():
        return tensor.to(device, dtype, non_blocking=True)
    whole = tensor.dtype != torch.bool and not tensor.is_complex()
    return tensor.to(device, torch.int64 if whole else tensor.dtype, non_blocking=True)


def _shared(array: Any) -> torch.Tensor:
    """An array as a tensor in the same memory where that is possible."""
    if array.dtype.kind not in "biufc":
        raise InvalidInput(f"an input of the batch is no array of numbers, but of {array.dtype}")
    return torch.from_numpy(array if _is_plain(array) else array.copy())


def _is_plain(array: Any) -> bool:
    """Whether torch can share an array's memory."""
    return bool(array.flags.writeable and all(stride >= 0 for stride in array.strides))


def _arrays(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        # numpy has no bfloat16, and float16 is a poor one to sum up losses in.
        half = value.dtype in (torch.bfloat16, torch.float16)
        return (value.float() if half else value).cpu().numpy()
    if isinstance(value, Mapping):
        return {key: _arrays(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_arrays(each) for each in value)
    return value


def _total(losses: Any) -> torch.Tensor:
    if isinstance(losses, Mapping):
        losses = losses["loss"] if "loss" in losses else sum(losses.values())
    if not isinstance(losses, torch.Tensor) or not losses.requires_grad:
        raise InvalidInput(
            "the criterion must return a tensor that depends on the model's output, or a "
            f"dictionary of such; it returned a {type(losses).__name__}"
        )
    total: torch.Tensor = losses if losses.ndim == 0 else losses.mean()
    return total


def _check_parts(architecture: Any, **functions: Any) -> None:
    if not isinstance(architecture, torch.nn.Module):
        raise InvalidInput(f"the architecture {architecture!r:.80} is no instance of a Module")
    for name, function in functions.items():
        if isinstance(function, type) or not callable(function):
            raise InvalidInput(
                f"the {name} {function!r:.80} cannot be called with outputs: give a function, or "
                "an instance such as torch.nn.CrossEntropyLoss()"
            )


def _optimizer(given: Any, architecture: torch.nn.Module) -> torch.optim.Optimizer:
    parameters = [each for each in architecture.parameters() if each.requires_grad]
    if not parameters:
        raise InvalidInput(f"the model {type(architecture).__name__} has no parameters to train")
    if not isinstance(given, torch.optim.Optimizer) and not callable(given):
        raise InvalidInput(
            f"the optimizer is {given!r:.80}: give a class such as torch.optim.Adam, a function of "
            "the parameters, or an optimizer of them"
        )
    made = given if isinstance(given, torch.optim.Optimizer) else given(parameters)
    check_trained({f"the optimizer {type(made).__name__}": made}, architecture.parameters())
    optimizer: torch.optim.Optimizer = made
    return optimizer


@contextlib.contextmanager
def _telling(inputs: tuple[Any, ...]) -> Iterator[None]:
    """Tell of the shapes of a batch that the model or the criterion does not take."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(getattr(each, "shape", ()))) for each in inputs)
        raise InvalidInput(
            f"the model or its criterion refused a batch of the shapes {shapes}: {error}"
        ) from error
