"""Models that are no modules: estimators, functions, other callables, and what is no model."""

import functools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression

from superduper.errors import InvalidInput
from superduper.serving.predictor import Predictor
from tests.serving.predicting import MyModel, values


def test_a_scikit_learn_classifier_works_as_it_is() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    labels = np.where(x[:, 0] > 0, "up", "down")
    model = LogisticRegression().fit(x, labels)
    outcomes = Predictor(model).predict([row.tolist() for row in x])
    assert values(outcomes) == model.predict(x).tolist()
    assert all(type(outcome["value"]) is str for outcome in outcomes)
    chances = model.predict_proba(x).max(axis=1)
    assert [outcome["confidence"] for outcome in outcomes] == pytest.approx(chances)
    as_fields = Predictor(model).predict([{"a": 1.0, "b": 2, "c": 0.5}])
    assert values(as_fields) == model.predict([[1.0, 2, 0.5]]).tolist()


def test_a_scikit_learn_regressor_of_one_number() -> None:
    model = LinearRegression().fit([[1], [2], [3]], [2, 4, 6])
    predictor = Predictor(model)
    outcomes = predictor.predict([1, 2.5, float("nan"), torch.tensor(3.0)])
    assert not predictor.has_confidence
    assert "NaN" in outcomes.pop(2)["error"]["message"]
    assert values(outcomes) == pytest.approx([2, 5, 6])


def test_an_estimator_of_text_gets_a_list() -> None:
    class Lengths:
        def predict(self, texts: list[str]) -> list[int]:
            assert isinstance(texts, list)
            return [len(text) for text in texts]

    assert values(Predictor(Lengths()).predict(["a", "bcd"])) == [1, 3]


def test_an_estimator_gets_an_array_whatever_else_is_loaded() -> None:
    """Here neither the model's module nor anything before it has imported numpy."""
    program = """
import sys
from superduper.serving.predictor import Predictor
class Shapes:
    def predict(self, rows):
        return [f"{type(rows).__name__} {rows.shape}"] * len(rows)
assert "numpy" not in sys.modules
print(Predictor(Shapes()).predict([1, 2])[0]["value"])
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.strip() == "ndarray (2,)", shown.stderr


def test_a_function_is_called_with_each_value() -> None:
    def shout(text: str) -> str:
        return text.upper() + "!"

    assert values(Predictor(shout).predict(["a", "b"])) == ["A!", "B!"]
    assert values(Predictor(len).predict(["a", "bb"])) == [1, 2]
    assert values(Predictor(functools.partial(max, 2)).predict([1, 3])) == [2, 3]
    assert values(Predictor(torch.sigmoid).predict([torch.zeros(())])) == [0.5]
    outcomes = Predictor(shout).predict(["a", 1])
    assert outcomes[0] == {"value": "A!"}
    assert outcomes[1]["error"]["type"] == "AttributeError"


def test_another_callable_is_called_with_a_batch() -> None:
    class Caller:
        def __call__(self, batch: Any) -> Any:
            assert isinstance(batch, torch.Tensor)
            return batch + 1

    assert values(Predictor(Caller()).predict([1.0, 2.0])) == [2.0, 3.0]


def test_an_object_with_forward_alone_is_called_with_a_batch() -> None:
    class Forward:
        def forward(self, batch: list[str]) -> list[str]:
            return [text[::-1] for text in batch]

    assert values(Predictor(Forward()).predict(["ab", "cd"])) == ["ba", "dc"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MyModel, "MyModel is a class: register an instance of it"),
        ("text", "a str is not a model: it needs forward, predict or __call__"),
    ],
)
def test_what_is_no_model(model: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Predictor(model)
