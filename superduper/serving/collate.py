"""Samples to a batch and a batch's output to rows: used to predict and to train.

A sample is what preprocess made of one value: a tensor, a number, an array, a tuple or dict of
these, or anything else. A batch has the same form with one dimension more in front; samples that
are none of these stay a list. This module needs torch, so import it only where models run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from superduper.errors import InvalidInput
from superduper.serving.failures import WrongRows


def is_number(value: object) -> bool:
    """Whether the value is a single real number: Python's or numpy's, booleans included."""
    return isinstance(value, int | float | np.number | np.bool_)


def to_tensors(sample: Any) -> Any:
    """The sample with numbers, lists of numbers and arrays made tensors, at any depth.

    Whole numbers become int64 (class indices, tokens), others float32; arrays keep their datatype.
    """
    if isinstance(sample, torch.Tensor):
        return sample
    if isinstance(sample, np.ndarray):
        return _from_numpy(sample)
    if is_number(sample):
        return _from_numbers(sample, [sample])
    if isinstance(sample, Mapping):
        return {str(key): to_tensors(value) for key, value in sample.items()}
    if isinstance(sample, list) and sample and all(is_number(value) for value in sample):
        return _from_numbers(sample, sample)
    if isinstance(sample, tuple | list):
        return tuple(to_tensors(value) for value in sample)
    return sample


def _from_numbers(data: Any, numbers: Sequence[Any]) -> torch.Tensor:
    if all(isinstance(number, bool | np.bool_) for number in numbers):
        return torch.tensor(data, dtype=torch.bool)
    whole = all(isinstance(number, int | np.integer) for number in numbers)
    return torch.tensor(data, dtype=torch.int64 if whole else torch.float32)


def _from_numpy(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind not in "biufc":
        return array
    # Arrays decoded from documents are read-only views, of which torch warns and cannot make use.
    native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))


def form(sample: Any) -> Any:
    """What two samples must share to go into one batch: structure, datatypes and shapes."""
    if isinstance(sample, torch.Tensor):
        return sample.dtype, tuple(sample.shape)
    if isinstance(sample, dict):
        return tuple((key, form(sample[key])) for key in sorted(sample))
    if isinstance(sample, tuple):
        return tuple(form(value) for value in sample)
    return type(sample)


def collate(samples: Sequence[Any]) -> Any:
    """One batch of several samples: tensors stacked, tuples and dicts field by field.

    Raises InvalidInput that names both shapes (or sizes, keys, kinds) if two samples differ, and
    for a sample that is empty: the model would be called without arguments.
    """
    if not samples:
        raise InvalidInput("a batch needs at least one sample")
    made = [to_tensors(sample) for sample in samples]
    if isinstance(made[0], tuple | dict) and not made[0]:
        raise InvalidInput(
            "an empty list or document has nothing in it that a model could be given"
        )
    return _collate(made, "")


def _collate(samples: Sequence[Any], where: str) -> Any:
    first = samples[0]
    if isinstance(first, torch.Tensor):
        _check_same(samples, torch.Tensor, lambda sample: tuple(sample.shape), "shape", where)
        return torch.stack(tuple(samples))
    if isinstance(first, dict):
        _check_same(samples, dict, lambda sample: sorted(sample), "fields", where)
        return {
            key: _collate([sample[key] for sample in samples], f"{where}[{key!r}]") for key in first
        }
    if isinstance(first, tuple):
        _check_same(samples, tuple, len, "length", where)
        return tuple(
            _collate([sample[index] for sample in samples], f"{where}[{index}]")
            for index in range(len(first))
        )
    return list(samples)


def _check_same(samples: Sequence[Any], kind: type, describe: Any, aspect: str, where: str) -> None:
    wanted = describe(samples[0])
    for index, sample in enumerate(samples):
        place = f"sample {index}{where}"
        if not isinstance(sample, kind):
            raise InvalidInput(
                f"samples differ: {place} is a {type(sample).__name__}, "
                f"the first is a {kind.__name__}"
            )
        if describe(sample) != wanted:
            raise InvalidInput(
                f"samples differ: {place} has {aspect} {describe(sample)}, the first has {wanted}: "
                "preprocess must give every sample of a batch the same one"
            )


def floating_dtype(model: object) -> torch.dtype | None:
    """The one floating datatype of a module's weights, or None if it has none or several."""
    if not isinstance(model, torch.nn.Module):
        return None
    found = {weight.dtype for weight in model.parameters() if weight.dtype.is_floating_point}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Weights:
    """What matters of a model's weights for its inputs.

    `dtype` is their `floating_dtype`; `embeds` says that whole numbers are looked up in a table (an
    embedding layer), so must stay whole.
    """

    dtype: torch.dtype | None
    embeds: bool

    @classmethod
    def of(cls, model: object) -> "Weights":
        """Those of a module; of anything else nothing is known."""
        if not isinstance(model, torch.nn.Module):
            return cls(None, False)
        tables = (torch.nn.Embedding, torch.nn.EmbeddingBag)
        embeds = any(isinstance(module, tables) for module in model.modules())
        return cls(floating_dtype(model), embeds)


def given_sample(value: Any, weights: Weights) -> Any:
    """The sample for a value that no preprocess is there for.

    Several fields that are all numbers become one vector, other dicts a dict of tensors (a dot in a
    field's name becomes `_`, so that it can be an argument's name). Whole numbers become floats as
    the weights are, because many drivers store 3.0 as 3; unless the model has an embedding.
    """
    if isinstance(value, Mapping):
        numbers = list(value.values())
        if numbers and all(is_number(number) for number in numbers):
            value = numbers if weights.embeds else [float(number) for number in numbers]
        else:
            value = {str(key).replace(".", "_"): item for key, item in value.items()}
    sample = to_tensors(value)
    return sample if weights.embeds else _each_tensor(sample, lambda x: _floating(x, weights))


def _floating(tensor: torch.Tensor, weights: Weights) -> torch.Tensor:
    exact = tensor.is_floating_point() or tensor.is_complex()
    return tensor if exact or weights.dtype is None else tensor.to(weights.dtype)


def place(batch: Any, device: str | torch.device, dtype: torch.dtype | None = None) -> Any:
    """The batch on a device, its floating tensors in the datatype of the weights.

    So float64, which is what numpy makes, works with float32 weights; whole numbers stay.
    """

    def move(tensor: torch.Tensor) -> torch.Tensor:
        floating = tensor.is_floating_point()
        wanted = (dtype or tensor.dtype) if floating else tensor.dtype
        # Not back from a GPU: what arrives in main memory would be looked at too early.
        return tensor.to(device, wanted, non_blocking=not tensor.is_cuda)

    return _each_tensor(batch, move)


def _each_tensor(data: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(data, torch.Tensor):
        return change(data)
    if isinstance(data, dict):
        return {key: _each_tensor(value, change) for key, value in data.items()}
    if isinstance(data, tuple):
        return tuple(_each_tensor(value, change) for value in data)
    return data


def call(model: Any, batch: Any) -> Any:
    """The model on a batch: a tuple as its arguments, a dict as its named ones, else as it is."""
    run = model if callable(model) else model.forward
    if isinstance(batch, tuple):
        return run(*batch)
    if isinstance(batch, dict):
        return run(**batch)
    return run(batch)


def unbatch(output: Any, count: int, what: str = "the model") -> list[Any]:
    """The rows of a batch's output, on the CPU.

    A tensor or array has a row for each input; a tuple, a list of tensors or a dict has in each
    field one for each input; any other list has an item for each. The kind of output decides, never
    its size, so that a row comes out the same in a batch of any size.
    Raises WrongRows if the number of rows is not `count`.
    """
    if isinstance(output, torch.Tensor):
        return list(_counted(output.detach().cpu(), count, what).unbind(0))
    if isinstance(output, np.ndarray):
        return list(_counted(output, count, what))
    if isinstance(output, Mapping):
        fields = {
            key: unbatch(value, count, f"{what}'s output {key!r}")
            for key, value in output.items()
            if value is not None
        }
        return [{key: rows[index] for key, rows in fields.items()} for index in range(count)]
    if isinstance(output, tuple) or (isinstance(output, list) and _all_arrays(output)):
        columns = [
            unbatch(value, count, f"{what}'s output {index}") for index, value in enumerate(output)
        ]
        return [tuple(column[index] for column in columns) for index in range(count)]
    if isinstance(output, list):
        if len(output) != count:
            raise WrongRows.of(what, len(output), count)
        return output
    raise WrongRows(
        f"{what} returned one {type(output).__name__} for {count} inputs: it must return a tensor "
        "(or a tuple, dict or list) with one row for each input"
    )


def _all_arrays(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, torch.Tensor | np.ndarray) for value in values)


def _counted(array: Any, count: int, what: str) -> Any:
    if array.ndim == 0:
        raise WrongRows(
            f"{what} returned a single number for {count} inputs: it must return one row for each"
        )
    if len(array) != count:
        raise WrongRows.of(what, len(array), count)
    return array
