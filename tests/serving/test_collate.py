"""Batches of samples, and the errors that name what differs."""

from typing import Any

import numpy as np
import pytest
import torch

from superduper.errors import InvalidInput
from superduper.serving import collate


def test_nested_samples_become_one_batch() -> None:
    samples = [
        {"image": np.full((2, 2), n, dtype="float32"), "pair": (n, [float(n), 0.5]), "text": "t"}
        for n in range(3)
    ]
    batch = collate.collate(samples)
    assert batch["image"].shape == (3, 2, 2)
    assert batch["pair"][0].tolist() == [0, 1, 2]
    assert batch["pair"][0].dtype == torch.int64
    assert batch["pair"][1].dtype == torch.float32
    assert batch["text"] == ["t", "t", "t"]


def test_targets_of_whole_numbers_stay_whole() -> None:
    assert collate.collate([1, np.int32(2), torch.tensor(3)]).dtype == torch.int64
    assert collate.collate([True, False]).dtype == torch.bool


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([torch.ones(3), torch.ones(4)], r"sample 1 has shape \(4,\), the first has \(3,\)"),
        ([(1, 2), (1, 2, 3)], "sample 1 has length 3, the first has 2"),
        ([{"a": 1}, {"b": 1}], r"sample 1 has fields \['b'\], the first has \['a'\]"),
        ([torch.ones(3), "x"], "sample 1 is a str, the first is a Tensor"),
        (
            [{"a": (torch.ones(1),)}, {"a": (torch.ones(2),)}],
            r"sample 1\['a'\]\[0\] has shape \(2,\), the first has \(1,\)",
        ),
        ([], "a batch needs at least one sample"),
        ([[]], "an empty list or document has nothing in it"),
        ([{}], "an empty list or document has nothing in it"),
    ],
)
def test_samples_that_differ(samples: list[Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        collate.collate(samples)


def test_rows_of_every_depth() -> None:
    output = (torch.arange(2), {"x": torch.ones(2, 3)})
    rows = collate.unbatch(output, 2)
    assert rows[1][0].item() == 1
    assert rows[1][1]["x"].shape == (3,)


def test_half_precision_weights_get_half_precision_inputs() -> None:
    model = torch.nn.Linear(2, 1).bfloat16()
    dtype = collate.floating_dtype(model)
    batch = collate.place((torch.ones(1, 2), torch.ones(1, dtype=torch.int64)), "cpu", dtype)
    assert [part.dtype for part in batch] == [torch.bfloat16, torch.int64]


def test_big_endian_and_columns_first_arrays() -> None:
    array = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    assert collate.to_tensors(array).tolist() == [[0, 1, 2], [3, 4, 5]]
