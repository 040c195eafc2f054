"""What a model's process tells of inputs that are out of domain, whichever way they come."""

from typing import Any

import bson
import numpy as np
import pytest
import torch
from tables import Table

from superduper.fields import tensors
from superduper.imputations.fitting.domain import fit_domain
from superduper.serving.blocks import Block, BlockOutcomes, floats
from superduper.serving.domain import Domain
from superduper.serving.predictor import Predictor
from superduper.serving.stored import predict_stored

ROWS = np.random.default_rng(0).normal(size=(300, 3)).astype("<f4")
FAR = np.full((1, 3), 50, "<f4")


@pytest.fixture(scope="module")
def domain() -> Domain:
    return fit_domain(Table(ROWS[:200]), [Table(ROWS[200:])], 0.05, 0)


@pytest.fixture
def inside(domain: Domain) -> Any:
    """Rows that are in the domain."""
    return ROWS[:200][(domain.distances(torch.tensor(ROWS[:200]).double()) < 0.5).numpy()][:8]


def told(outcomes: Any) -> list[dict[str, Any]]:
    return [bson.decode(bson.encode(each)) for each in outcomes]


def test_vectors_stay_in_one_block_where_all_are_in_the_domain(domain: Domain, inside: Any) -> None:
    model = torch.nn.Linear(3, 2)
    predictor = Predictor(model, domain=domain)
    block = Block(floats(3), inside.tobytes())
    outcomes = predict_stored(predictor, block)
    assert isinstance(outcomes, BlockOutcomes)
    assert told(outcomes) == told(predict_stored(Predictor(model), block))

    mixed = Block(floats(3), np.concatenate([inside, FAR]).tobytes())
    *first, last = told(predict_stored(predictor, mixed))
    assert all(set(each) == {"value"} for each in first)
    assert (
        last["out_of_domain"]["threshold"] == domain.threshold < last["out_of_domain"]["distance"]
    )
    answer = tensors.decode_vector(last["value"], "numpy")
    assert np.allclose(answer, model(torch.tensor(FAR))[0].detach(), atol=1e-5)


def test_a_model_that_fails_on_what_is_out_of_domain_has_both_told(
    domain: Domain, inside: Any
) -> None:
    class Picky(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((x > 10).any()) or x.shape[1] != 3:
                raise ValueError("unheard of")
            return super().forward(x)

    predictor = Predictor(Picky(3, 2), domain=domain)
    values = [tensors.encode_array(row) for row in (inside[0], FAR[0], np.zeros(4, "<f4"))]
    sound, far, longer = told(predict_stored(predictor, [*values]))
    assert set(sound) == {"value"}
    assert far["error"]["message"] == "unheard of" and far["out_of_domain"]["distance"] > 1
    assert longer["error"] and longer["out_of_domain"]["distance"] is None


def test_one_explained_says_how_far_it_is(domain: Domain, inside: Any) -> None:
    predictor = Predictor(torch.nn.Linear(3, 2), domain=domain)
    assert predictor.explain(torch.tensor(FAR[0]))["out_of_domain"]["distance"] > 1
    assert "out_of_domain" not in predictor.explain(torch.tensor(inside[0]))


def test_preprocess_comes_before_the_comparison(domain: Domain, inside: Any) -> None:
    predictor = Predictor(torch.nn.Linear(3, 2), preprocess=lambda x: x / 100, domain=domain)
    [sound, far, failed] = predictor.predict(
        [100 * torch.tensor(inside[0]), 100 * torch.tensor(FAR[0]), "text"]
    )
    assert "out_of_domain" not in sound and far["out_of_domain"]["distance"] > 1
    assert set(failed) == {"error"}
