"""Data in three parts, drawn at random by a seed."""

from typing import Any

import numpy
import torch

from superduper.errors import InvalidInput


def train_validate_test_split(
    data: Any, validate_size: float = 0.2, test_size: float = 0.2, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Three parts of a dataset, dataframe, tensor, array or list; sizes are shares of the whole.

    The parts are of the data's kind; a dataset's are `torch.utils.data.Subset`.
    """
    n = len(data)
    n_validate, n_test = round(n * validate_size), round(n * test_size)
    if min(n_validate, n_test) < 0 or n_validate + n_test >= max(n, 1):
        raise InvalidInput(
            f"{n} records cannot give {n_validate} to validate, {n_test} to test and any to train"
        )
    order = numpy.random.Generator(numpy.random.Philox(key=seed)).permutation(n)
    n_train = n - n_validate - n_test
    parts = numpy.split(order, [n_train, n_train + n_validate])
    train, validate, test = (_part(data, numpy.sort(part)) for part in parts)
    return train, validate, test


def _part(data: Any, index: numpy.ndarray[Any, Any]) -> Any:
    if hasattr(data, "iloc"):
        return data.iloc[index]
    if isinstance(data, numpy.ndarray):
        return data[index]
    if isinstance(data, torch.Tensor):
        return data[torch.from_numpy(index)]
    if isinstance(data, list | tuple):
        return [data[position] for position in index]
    return torch.utils.data.Subset(data, index.tolist())
