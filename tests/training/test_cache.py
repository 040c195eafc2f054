"""Records come back from disk as they went in, in any order."""

from pathlib import Path
from typing import Any

import bson
import pytest
import torch

from superduper.errors import InvalidInput
from superduper.training.cache import Fold, layout
from superduper.training.graph import description


def fold_of(folder: Path, records: list[tuple[Any, Any]]) -> Fold:
    fold = Fold(folder / "train")
    for number, (x, y) in enumerate(records):
        fold.append(x, y, bson.encode({"_id": number, "targets": [str(number)]}), b"%d" % number)
    fold.seal()
    return fold


def test_samples_of_any_form_come_back_stacked(tmp_path: Path) -> None:
    records = [
        (
            {"image": torch.full((2, 3), float(i)), "pair": (torch.tensor(i), torch.ones(1))},
            torch.tensor(i),
        )
        for i in range(5)
    ]
    fold = fold_of(tmp_path, records)
    frame = fold.gather(torch.tensor([3, 0]))
    assert frame["x"]["image"][:, 0, 0].tolist() == [3.0, 0.0]
    assert frame["x"]["image"].shape == (2, 2, 3)
    assert frame["x"]["pair"][0].tolist() == [3, 0]
    assert frame["x"]["pair"][1].shape == (2, 1)
    assert frame["y"].dtype == torch.int64
    assert [raw["targets"] for raw in fold.raw(torch.tensor([4, 1]))] == [["4"], ["1"]]
    fold.close()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64, torch.complex64]
)
def test_every_datatype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = [torch.tensor([[0, 1], [1, 1]]).to(dtype), torch.zeros(2, 2).to(dtype)]
    fold = fold_of(tmp_path, [(tensor, torch.tensor(0)) for tensor in tensors])
    assert torch.equal(fold.gather(torch.tensor([0, 1]))["x"], torch.stack(tensors))
    fold.close()


def test_whole_numbers_become_floats_when_a_float_follows(tmp_path: Path) -> None:
    values = [torch.tensor(1), torch.tensor(2), torch.tensor(2.5), torch.tensor(3)]
    fold = fold_of(tmp_path, [(torch.zeros(1), value) for value in values])
    y = fold.gather(torch.arange(4))["y"]
    assert y.dtype == torch.float32
    assert y.tolist() == [1.0, 2.0, 2.5, 3.0]
    fold.close()


def test_an_empty_fold_has_a_hash_and_no_records(tmp_path: Path) -> None:
    fold = fold_of(tmp_path, [])
    assert fold.n == 0 and len(fold.hash) == 64
    with pytest.raises(InvalidInput, match="'train' has no records"):
        fold.gather(torch.arange(0))
    fold.close()


def test_the_hash_tells_other_data_and_another_order(tmp_path: Path) -> None:
    hashes = set()
    for number, order in enumerate(([1, 2], [2, 1], [1, 3])):
        fold = Fold(tmp_path / str(number))
        for value in order:
            fold.append(torch.zeros(1), torch.zeros(1), bson.encode({}), b"%d" % value)
        fold.seal()
        hashes.add(fold.hash)
        fold.close()
    assert len(hashes) == 3


@pytest.mark.parametrize("sample", ["text", None, (), {}, [torch.zeros(1)], (torch.zeros(1), "a")])
def test_what_is_no_tensor_is_refused(sample: Any) -> None:
    with pytest.raises(InvalidInput, match="is no tensor"):
        layout(sample)


def test_a_form_in_words() -> None:
    assert description((torch.zeros(2, 3), {"a": torch.tensor(1)})) == (
        "(shape (2, 3), {a: shape ()})"
    )
