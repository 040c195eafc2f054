"""Vectors in a block are what lists of the single ones are."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from superduper.fields import tensors
from superduper.serving.host import ModelHost
from superduper.serving.vectors import HEAD, VectorOutcomes, Vectors, join

ROWS = np.arange(12, dtype="<f4").reshape(4, 3)


def block(rows: np.ndarray) -> Vectors:  # type: ignore[type-arg]
    return Vectors(rows.tobytes(), rows.shape[1])


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
    assert isinstance(same, Vectors) and list(same) == list(block(ROWS))
    mixed = join([block(ROWS[:1]), block(ROWS[:1, :2]), ["text"]])
    assert mixed == [*block(ROWS[:1]), *block(ROWS[:1, :2]), "text"]


def test_outcomes_are_parts_of_a_block() -> None:
    outcomes = VectorOutcomes(block(ROWS))
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
    assert isinstance(given, Vectors) and len(given.parts) == 3
    outcomes = host.predict(given, 60)
    assert [outcome["value"] for outcome in outcomes] == list(block(-rows))
    # One that fails does so alone: the others are tried with what they were, not as it left them.
    rows[3] = 7
    outcomes = host.predict(block(rows), 60)
    assert "no sevens" in outcomes[3]["error"]["message"]
    good = [outcome.get("value") for outcome in outcomes]
    assert good == [None if number == 3 else value for number, value in enumerate(block(-rows))]
