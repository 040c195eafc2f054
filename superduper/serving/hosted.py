"""What runs inside a model host, the child process that holds one live component.

It is given values as they are stored and gives back outputs as they can be stored.
"""

import functools
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil

from superduper.errors import InvalidInput
from superduper.fields import tensors
from superduper.serving import signature
from superduper.serving.agreement import Limits
from superduper.serving.blocks import Block, BlockOutcomes, pack, unpack
from superduper.serving.choice import choose
from superduper.serving.failures import Failure, each
from superduper.serving.pieces import OpenAnswers
from superduper.serving.predictor import Place, Predictor, is_module
from superduper.serving.stored import decoding, describe, predict_stored, seen, to_stored
from superduper.store.unsealing import load

if TYPE_CHECKING:
    import torch

Message = dict[str, Any]

# After loading, torch's hundred thousand objects are frozen; what is left is small and dies young.
GC_THRESHOLDS = (50_000, 20, 100)
PAIR = 2
BETWEEN = ("given", "returned")
BATCHING: tuple[tuple[str, Any, float, float], ...] = (
    ("max_batch_size", int, 1, 10_000),
    ("max_wait_ms", (int, float), 0, 1000),
)


class Hosted:
    """The component of this process, and the operations that its parent may ask for."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._predictor: Predictor | None = None
        self._end_if_lost: Callable[[], None] | None = None
        self._answers = OpenAnswers()

    def handlers(self) -> dict[str, Callable[[Message], Message]]:
        """The operations by name."""
        operations = (
            self.load,
            self.predict,
            self.explain,
            self.open_answer,
            self.next_piece,
            self.close_answer,
            self.try_sample,
            self.choose_form,
        )
        return {operation.__name__: self._watched(operation) for operation in operations}

    def _watched(self, operation: Callable[[Message], Message]) -> Callable[[Message], Message]:
        """The operation; if the GPU is lost by it, nothing is answered and this process ends."""

        def run(message: Message) -> Message:
            try:
                return operation(message)
            finally:
                if self._end_if_lost is not None:
                    self._end_if_lost()

        return run

    def load(self, message: Message) -> Message:
        """Verify and unpickle the component, get ready, and tell what it is."""
        began = time.monotonic()
        kind, parts = message["kind"], _load(message)
        if kind == "model":
            self._predictor = Predictor(
                parts["object"],
                parts["preprocess"],
                parts["postprocess"],
                device=self._device(parts["object"], message["device"]),
                domain=_domain(parts["domain"]),
                place=self._place,
            )
            _import_as_registered(self._predictor, message["payload"]["record"])
            self._predictor.settle()
        else:
            check_component(kind, parts["object"])
        _settle()
        details = {
            "type": type_name(parts["object"]),
            "load_ms": round((time.monotonic() - began) * 1000),
            "memory_mb": _memory_mb(),
            **self._device_told(),
        }
        if self._predictor is not None:
            details["has_confidence"] = self._predictor.has_confidence
            details["batching"] = wanted_batching(parts["object"])
            # Whether a list of numbers and a vector of float32 are the same to it.
            torch_reads = self._predictor.style != "estimator" and tensors.loaded("torch")
            details["reads_float32"] = bool(torch_reads)
        return details

    def _device_told(self) -> Message:
        """The name of the GPU that a model computes on, and what of its memory is held for it."""
        if self._predictor is None or str(self._predictor.device) == "cpu":
            return {}
        from superduper import devices

        device = devices.device_of(self._predictor.device)
        return {
            "device": devices.device_name(device),
            "gpu_memory_mb": devices.memory_mb(device),
        }

    def _device(self, model: Any, name: str) -> "torch.device | str":
        """Where a model computes: a module on the device of that name, anything else where it
        likes."""
        if not is_module(model):
            return "cpu"
        from superduper import devices  # which needs torch

        device = devices.child_device(name)
        self._end_if_lost = functools.partial(devices.end_if_lost, device)
        return device

    def choose_form(self, message: Message) -> Message:
        """Try faster forms of the model on some inputs, and use one that earns it; see `choice`."""
        predictor = self._loaded()
        limits = Limits(message["tolerance"], message["agreement"])
        report = choose(predictor, message["inputs"], message["form"], limits)
        _settle()
        return {"report": report, "memory_mb": _memory_mb()}

    def predict(self, message: Message) -> Message:
        """An outcome for each value, in order; with `plain`, by the model's plain form."""
        predictor = self._loaded()
        predictor.seconds = {}
        block = unpack(message)
        values: Sequence[Any] = message["values"] if block is None else block
        faster = predictor.faster
        if message.get("plain"):
            predictor.faster = None
        try:
            outcomes = predict_stored(predictor, values) if values else []
        finally:
            predictor.faster = faster
        if isinstance(outcomes, BlockOutcomes) and isinstance(values, Block):
            told: Message = pack(outcomes.block)
        else:
            told = {"outcomes": list(outcomes)}
        if faster is not None and faster.left:
            told["left_to_plain"], faster.left = faster.left, 0
        return {**told, "seconds": predictor.seconds}

    def explain(self, message: Message) -> Message:
        """One prediction with what was in between, each part as it can be shown."""
        predictor = self._loaded()
        predictor.seconds = {}
        [decoded] = each(decoding(predictor), [message["value"]])
        if isinstance(decoded, Failure):
            return {"failed_at": "decode", "error": decoded.error}
        told = predictor.explain(decoded)
        between = {part: seen(told.pop(part)) for part in BETWEEN if part in told}
        stored = dict(to_stored(told))
        if "error" in stored:
            stored.setdefault("failed_at", "encode")
        return {**between, **stored, "seconds": predictor.seconds}

    def open_answer(self, message: Message) -> Message:
        """Begin an answer that is read piece by piece."""
        predictor = self._loaded()
        return {
            "answer": self._answers.add(predictor.pieces(decoding(predictor)(message["value"])))
        }

    def next_piece(self, message: Message) -> Message:
        """The next outcome of such an answer, None after the last."""
        try:
            outcome = self._answers.next(message["answer"])
        except KeyError:
            return {"gone": True}
        return {"outcome": None if outcome is None else to_stored(outcome)}

    def close_answer(self, message: Message) -> Message:
        """Nobody wants the rest."""
        self._answers.close(message["answer"])
        return {}

    def try_sample(self, message: Message) -> Message:
        """Run on one value, and on the same value twice, and tell what the output is like.

        Raises InvalidInput if either fails: a model that is right for one input only would fail as
        soon as two requests come at once.
        """
        predictor = self._loaded()
        value = decoding(predictor)(message["value"])
        [outcome] = predictor.predict([value])
        if "error" in outcome:
            raise InvalidInput(f"it failed on the sample: {_shown(outcome['error'])}")
        for other in predictor.predict([value] * PAIR):
            if "error" in other:
                raise InvalidInput(
                    "it works on the sample alone, but not on a batch of two of it: "
                    f"{_shown(other['error'])}"
                )
        stored = to_stored(outcome)
        if "error" in stored:
            raise InvalidInput(f"its output cannot be stored: {stored['error']['message']}")
        inputs = signature.tensors_of(value, signature.INPUT)
        outputs = signature.tensors_of(outcome["value"], signature.OUTPUT)
        if "confidence" in outcome:
            outputs += signature.tensors_of(outcome["confidence"], signature.CONFIDENCE)
        return {
            "output": describe(outcome["value"]),
            "signature": {
                "inputs": inputs,
                "outputs": outputs,
                "by_field": isinstance(value, Mapping),
            },
        }

    def _loaded(self) -> Predictor:
        if self._predictor is None:
            raise InvalidInput("no model is loaded in this process")
        return self._predictor


def _load(message: Message) -> dict[str, Any]:
    what = f"{message['kind']} {message['name']!r}"
    try:
        parts = load(message["payload"])
    except ModuleNotFoundError as error:
        module = (error.name or str(error)).partition(".")[0]
        raise InvalidInput(
            f"{what} needs the module {module!r}, which is not installed where models run: install "
            "it there, or define what is needed of it in the script that registers"
        ) from error
    return {"preprocess": None, "postprocess": None, **parts}


def _domain(kept: Mapping[str, Any] | None) -> Any:
    """What its inputs are compared with, where the version has that."""
    if kept is None:
        return None
    from superduper.serving.domain import Domain  # which needs torch

    return Domain.of(kept)


def _import_as_registered(predictor: Predictor, record: Mapping[str, Any]) -> None:
    """Have torch where the registering process had it: a function of tensors names no module."""
    if predictor.style == "function" and record.get("torch_version"):
        tensors.load("torch")


def _settle() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # holds for the thread that calls it, which is the one that infers
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _memory_mb() -> int:
    return psutil.Process().memory_info().rss >> 20


def wanted_batching(model: Any) -> dict[str, Any]:
    """How a model says that requests for it be grouped, by attributes of these names.

    Raises InvalidInput for a value that makes no sense.
    """
    wanted: dict[str, Any] = {}
    for name, kinds, least, most in BATCHING:
        value = getattr(model, name, None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            raise InvalidInput(f"the model's {name} must be from {least} to {most}, not {value!r}")
        wanted[name] = value
    return wanted


def check_component(kind: str, component: Any) -> None:
    """Raise InvalidInput if an object cannot be what it is registered as."""
    is_class = isinstance(component, type)
    name = type_name(component)
    if kind == "trainer":
        if not is_class:
            raise InvalidInput(f"a trainer must be a class, not an instance of {name}")
    elif kind == "optimizer":
        if not callable(component):
            raise InvalidInput(f"an optimizer must be a class or a function; {name} is neither")
    elif kind == "policy":
        if not callable(component) and not hasattr(component, "state_dict"):
            raise InvalidInput(f"a policy must be an instance or subclass of Policy; {name} is not")
    elif kind == "encoder":
        if not all(callable(getattr(component, part, None)) for part in ("encode", "decode")):
            raise InvalidInput(f"an encoder needs the methods encode and decode; {name} has not")
    elif is_class and component.__module__ != "builtins":
        raise InvalidInput(f"{component.__name__} is a class: register an instance of it")
    elif not callable(component):
        raise InvalidInput(f"a {kind} must be callable; {name} is not")


def type_name(component: Any) -> str:
    """The name of a class or function, or of an object's class, with its module."""
    named = component if hasattr(component, "__qualname__") else type(component)
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if module else str(named.__qualname__)


def _shown(error: Mapping[str, str]) -> str:
    return f"{error['type']}: {error['message']}\n{error['traceback']}".strip()
