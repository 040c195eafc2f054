"""Faster forms of a module: the same layers, computed another way. Needs torch; where models run.

`bf16` has weights and numbers of 16 bits, `int8` linear layers of whole numbers, `onnx` is run by
ONNX Runtime, `compiled` by what torch's compiler made. Each is a copy beside the module, but the
last.
"""

import copy
import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as tree

from superduper.serving import collate
from superduper.serving.failures import CONTAINED, describe_error

Run = Callable[[Any], Any]
"""Takes a batch as `Predictor.batch` makes it, and gives what the module gives for it."""

LEAST_ROWS = 4
_SAID_CHARACTERS = 300
_INT8_ENGINE = "onednn"  # the quickest for large batches, where there is it


class NoForm(Exception):
    """A form that cannot be made of this module, or not here; the message says why."""


def build(form: str, model: torch.nn.Module, batch: Any) -> Run:
    """The module in another form; `batch` has at least `LEAST_ROWS`.

    For a module in evaluation mode, without gradients. Raises NoForm, or anything: whatever stands
    in the way of it is found by trying.
    """
    with _silence():
        return _BUILDERS[form](model, batch)


@contextmanager
def _silence() -> Iterator[None]:
    """Without the warnings of what is tried, which are nobody's concern."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Guarded:
    """A faster form that leaves to the plain one what it cannot do.

    That is a batch on which it raises, or for which one of its numbers is not finite.
    """

    def __init__(self, run: Run, plain: Run) -> None:
        self._run = run
        self._plain = plain
        self.left = 0
        """How many batches were left to the plain form since this was last set to 0."""
        self.trouble = ""
        """Why the last of them was."""

    def __call__(self, batch: Any) -> Any:
        try:
            output = self._run(batch)
            if _is_finite(output):
                return output
            self.trouble = "it gives a number that is not finite"
        except CONTAINED as error:  # if it is the input's fault, the plain form raises as well
            self.trouble = f"it fails: {said(error)}"
        self.left += 1
        return self._plain(batch)


def said(error: BaseException) -> str:
    """What an error says, in a line that is not too long."""
    told = describe_error(error)
    text = told["message"] if isinstance(error, NoForm) else f"{told['type']}: {told['message']}"
    return " ".join(text.split())[:_SAID_CHARACTERS]


def _is_finite(output: Any) -> bool:
    if not isinstance(output, torch.Tensor):
        return all(map(_is_finite, (x for x in tree.tree_leaves(output) if torch.is_tensor(x))))
    # The sum is found in one step, and is finite unless a number is not, or it is too large itself.
    finite = not output.is_floating_point() or math.isfinite(output.sum().item())
    return finite or bool(torch.isfinite(output).all())


# The forms ------------------------------------------------------------------------------------


def _device_of(batch: Any) -> torch.device:
    """What a batch, and so the model, computes on."""
    tensors = (leaf for leaf in tree.tree_leaves(batch) if isinstance(leaf, torch.Tensor))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _on_cpus_only(batch: Any) -> None:
    """Raise NoForm where the model computes on a GPU."""
    if _device_of(batch).type != "cpu":
        raise NoForm("it computes on CPUs only, and the model is on a GPU")


def _bf16(model: torch.nn.Module, batch: Any) -> Run:
    low, dtype = copy.deepcopy(model).to(torch.bfloat16), collate.floating_dtype(model)
    device = _device_of(batch)

    def back(leaf: Any) -> Any:
        is_low = isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bfloat16
        return leaf.to(dtype) if is_low else leaf

    def run(batch: Any) -> Any:
        given = collate.place(batch, device, torch.bfloat16)
        return tree.tree_map(back, collate.call(low, given))

    if dtype in (None, torch.bfloat16):
        raise NoForm("its weights are not of one datatype that has more bits")
    return run


def _int8(model: torch.nn.Module, batch: Any) -> Run:
    from torch.ao.quantization import quantize_dynamic

    _on_cpus_only(batch)
    layers = {torch.nn.Linear}
    if not any(type(module) in layers for module in model.modules()):
        raise NoForm("it has no linear layer")
    with _int8_engine():
        low: Any = quantize_dynamic(model, layers, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return lambda batch: collate.call(low, batch)


@contextmanager
def _int8_engine() -> Iterator[None]:
    """Meanwhile weights are laid out for the quickest engine; they are run by the same one."""
    engines: Any = torch.backends.quantized
    before = engines.engine
    if _INT8_ENGINE in engines.supported_engines:
        engines.engine = _INT8_ENGINE
    try:
        yield
    finally:
        engines.engine = before


def _onnx(model: torch.nn.Module, batch: Any) -> Run:
    _on_cpus_only(batch)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter is written with it
    except ImportError as error:
        raise NoForm(
            f"{error.name} is not installed where models run: "
            "pip install 'superduper-imputations[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        _exported(model, batch), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    order = inspect.signature(model.forward).parameters  # in which named fields are exported
    _, shape = tree.tree_flatten(collate.call(model, batch))

    def run(batch: Any) -> Any:
        named = isinstance(batch, dict)
        fields = [batch[name] for name in order if name in batch] if named else _fields(batch)
        given = {name: field.numpy() for name, field in zip(names, fields, strict=True)}
        made = session.run(None, given)
        return tree.tree_unflatten([torch.from_numpy(each) for each in made], shape)

    return run


def _fields(batch: Any) -> tuple[torch.Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def _exported(model: torch.nn.Module, batch: Any) -> bytes:
    rows = {0: torch.export.Dim("rows")}
    is_named = isinstance(batch, dict)
    fields = tuple(batch.values()) if is_named else _fields(batch)
    if not all(isinstance(field, torch.Tensor) for field in fields):
        raise NoForm("its inputs are not tensors, or tuples or dicts of tensors")
    program = torch.onnx.export(
        model,
        args=() if is_named else fields,
        kwargs=batch if is_named else None,
        dynamic_shapes=dict.fromkeys(batch, rows) if is_named else (rows,) * len(fields),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # so it is without a file's name
    exported: bytes = program.model_proto.SerializeToString()
    return exported


def _compiled(model: torch.nn.Module, batch: Any) -> Run:
    from torch._inductor import config

    config.compile_threads = 1  # no processes that stay
    compiled = torch.compile(model, dynamic=True)

    def run(batch: Any) -> Any:
        return collate.call(compiled, batch)

    run(batch)
    run(tree.tree_map(lambda leaf: leaf[:1], batch))  # one row is always compiled by itself
    # What does not fit is computed plainly: nobody is made to wait for a compiler.
    torch.compiler.set_stance("eager_on_recompile")
    return run


_BUILDERS: dict[str, Callable[[torch.nn.Module, Any], Run]] = {
    "bf16": _bf16,
    "int8": _int8,
    "onnx": _onnx,
    "compiled": _compiled,
}
FORMS = tuple(_BUILDERS)
"""In the order in which they are tried."""
