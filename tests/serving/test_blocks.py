"""Tensors in a block are what lists of the single ones are."""

import math
from collections.abc import Callable

import bson
import numpy as np
import pytest
import torch
from bson.raw_bson import RawBSONDocument

from superduper.fields import tensors
from superduper.serving.blocks import (
    HEAD,
    Block,
    BlockOutcomes,
    floats,
    join,
    layout_of,
    of_stored,
    pack,
    unpack,
)
from superduper.serving.host import ModelHost
from superduper.serving.predictor import Predictor
from superduper.serving.stored import predict_stored

ROWS = np.arange(12, dtype="<f4").reshape(4, 3)


def block(rows: np.ndarray) -> Block:  # type: ignore[type-arg]
    return Block(floats(rows.shape[1]), rows.tobytes())


def test_a_block_is_a_sequence_of_stored_vectors() -> None:
    vectors = block(ROWS)
    wanted = [tensors.encode_array(row) for row in ROWS]
    assert len(vectors) == 4
    assert list(vectors) == wanted
    assert [vectors[index] for index in (0, -1)] == [wanted[0], wanted[3]]
    assert vectors[0].subtype == wanted[0].subtype
    assert wanted[0][: len(HEAD)] == HEAD
    assert list(vectors[1:3]) == wanted[1:3]
    with pytest.raises(IndexError):
        vectors[4]
    with pytest.raises(ValueError, match="in a row"):
        vectors[::2]


def test_blocks_of_one_width_are_joined_and_others_become_a_list() -> None:
    same = join([block(ROWS[:1]), block(ROWS[1:])])
    assert isinstance(same, Block) and list(same) == list(block(ROWS))
    mixed = join([block(ROWS[:1]), block(ROWS[:1, :2]), ["text"]])
    assert mixed == [*block(ROWS[:1]), *block(ROWS[:1, :2]), "text"]


NAMES = [name for name in tensors.ITEM_SIZES if not name.startswith("complex")]


def stacked(dtype: str, *shape: int) -> tuple[torch.Tensor, Block]:
    """A tensor of zeros and ones with three rows of that shape, and the same as a block."""
    rows = (torch.arange(3 * math.prod(shape)) % 3 % 2).reshape(3, *shape).to(getattr(torch, dtype))
    return rows, Block(
        layout_of(dtype, shape), rows.contiguous().view(torch.uint8).numpy().tobytes()
    )


@pytest.mark.parametrize("shape", [(1,), (9,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("dtype", tensors.ITEM_SIZES)
def test_an_item_is_as_a_document_has_it(dtype: str, shape: tuple[int, ...]) -> None:
    rows, given = stacked(dtype, *shape)
    assert list(given) == [tensors.encode_array(row) for row in rows]
    assert list(unpack(bson.decode(bson.encode({**pack(given), "block": given.data})))) == list(
        given
    )


@pytest.mark.parametrize("dtype", tensors.ITEM_SIZES)
def test_stored_tensors_of_one_layout_are_a_block(dtype: str) -> None:
    for shape in ((9,), (2, 3)):
        values = list(stacked(dtype, *shape)[1])
        made = of_stored(values)
        is_packed = dtype == "bool" and len(shape) == 1  # eight in a byte
        assert isinstance(made, Block) is not is_packed
        assert list(made) == values


def test_stored_values_that_differ_or_are_unsound_stay_as_they_are() -> None:
    one, other = stacked("int16", 2, 3)[1], stacked("int16", 3, 2)[1]
    broken = {**one[0], "shape": [2, 4]}
    as_vector = {**stacked("int16", 3)[1][0], "dtype": "int8", "shape": [6]}
    for values in ([one[0], other[0]], [one[0], broken], [as_vector], [one[0], 1.5], ["x"], []):
        assert of_stored(values) is values
    strange = [{**one[0], "kind": kind} for kind in ("a b", "", [1], {"x": 1}, 3)]
    assert not any(isinstance(of_stored([value]), Block) for value in strange)
    assert isinstance(of_stored([{**one[0], "kind": "numpy"}]), Block)
    empty = tensors.encode_array(torch.zeros(2, 0))
    assert not isinstance(of_stored([empty]), Block)


class Sum(torch.nn.Linear):
    """Looks at all of a row, with weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1))


class Turned(torch.nn.Module):
    """The rows' last two dimensions the other way round, as they came, without weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-1, -2)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("model", [Sum(6, 2), Turned(), torch.nn.Embedding(2, 3)], ids=str)
def test_tensors_in_a_block_are_predicted_as_single_ones(
    model: torch.nn.Module, dtype: str
) -> None:
    _, given = stacked(dtype, 2, 3)
    predictor = Predictor(model)
    made = predict_stored(predictor, given)
    alone = [predict_stored(predictor, [value])[0] for value in given]
    told = [
        bson.decode(each.raw if isinstance(each, RawBSONDocument) else bson.encode(each))
        for each in made
    ]
    assert told == [bson.decode(each.raw) for each in alone]
    if "error" not in told[0]:
        assert isinstance(made, BlockOutcomes)


def test_outcomes_are_parts_of_a_block() -> None:
    outcomes = BlockOutcomes(block(ROWS))
    assert list(outcomes) == [{"value": vector} for vector in block(ROWS)]
    part = outcomes[1:4][1:]
    assert len(part) == 2 and list(part) == list(outcomes)[2:4]
    assert part[-1] == outcomes[3]
    with pytest.raises(IndexError):
        part[2]
    with pytest.raises(ValueError, match="in a row"):
        outcomes[::2]


class Negative(torch.nn.Module):
    """Writes to its input, and does not like a row of sevens in a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fails = bool((x[:, 0] == 7).any())
        x.neg_()
        if fails:
            raise ValueError("no sevens")
        return x


def test_large_rows_go_to_a_model_and_back(open_host: Callable[..., ModelHost]) -> None:
    host = open_host(Negative())
    rows = np.random.default_rng(0).normal(size=(20, 50_000)).astype("<f4")
    given = join([block(rows[:7]), block(rows[7:8]), block(rows[8:])])
    assert isinstance(given, Block) and len(given.parts) == 3
    outcomes = host.predict(given, 60)
    assert [outcome["value"] for outcome in outcomes] == list(block(-rows))
    # One that fails does so alone: the others are tried with what they were, not as it left them.
    rows[3] = 7
    outcomes = host.predict(block(rows), 60)
    assert "no sevens" in outcomes[3]["error"]["message"]
    good = [outcome.get("value") for outcome in outcomes]
    assert good == [None if number == 3 else value for number, value in enumerate(block(-rows))]
