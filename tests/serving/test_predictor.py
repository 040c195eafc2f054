"""What comes out of a model, whatever kind of model and input it is."""

from typing import Any

import numpy as np
import pytest
import torch

from superduper.serving.predictor import Predictor
from tests.serving.predicting import LABELS, MyModel, values


class Doubled(torch.nn.Module):
    """Twice its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Summed(torch.nn.Module):
    """The sum of its arguments, whichever way they come."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


def test_the_classification_example_gives_labels() -> None:
    torch.manual_seed(0)
    model = MyModel(LABELS, 4)
    inputs = [torch.randn(4) for _ in range(20)]
    expected = [LABELS[int(model(x).argmax())] for x in inputs]
    assert values(Predictor(model).predict(inputs)) == expected


def test_the_model_is_evaluated_and_left_in_its_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.9))
    model[1].eval()
    model[0].train()
    x = torch.randn(4)
    [row] = values(Predictor(model).predict([x]))
    assert torch.allclose(row, model[0](x))
    assert not row.requires_grad
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_what_a_model_kept_while_predicting_can_be_trained_with() -> None:
    class Keeps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
            self.kept: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.kept is None:
                self.kept = torch.ones(2)
            return self.layer(x * self.kept)

    model = Keeps()
    Predictor(model).predict([torch.ones(2)])
    model(torch.ones(1, 2, requires_grad=True)).sum().backward()


def test_one_by_one_gives_what_a_batch_gives() -> None:
    predictor = Predictor(MyModel(LABELS, 8), postprocess=lambda row: row)
    inputs = [torch.randn(8) for _ in range(50)]
    together = values(predictor.predict(inputs))
    alone = [values(predictor.predict([x]))[0] for x in inputs]
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.numpy(),
        lambda x: x.double().numpy(),
        lambda x: np.frombuffer(x.numpy().tobytes(), dtype="float32"),
        lambda x: x.tolist(),
        lambda x: x.double(),
        lambda x: x.half().float(),
    ],
    ids=["tensor", "numpy", "float64", "read-only", "list", "double", "half"],
)
def test_kinds_of_input(make: Any) -> None:
    model = torch.nn.Linear(3, 2)
    x = torch.tensor([0.5, -1.0, 2.0])
    [row] = values(Predictor(model).predict([make(x)]))
    assert torch.allclose(row, model(x))


def test_whole_numbers_are_floats_to_a_linear_model() -> None:
    model = torch.nn.Linear(2, 1)
    whole, real = values(Predictor(model).predict([torch.tensor([1, 2]), torch.tensor([1.0, 2.0])]))
    assert torch.allclose(whole, real)


def test_whole_numbers_stay_for_an_embedding() -> None:
    model = torch.nn.Embedding(5, 3)
    rows = values(Predictor(model).predict([1, 4]))
    assert torch.equal(torch.stack(rows), model.weight[[1, 4]])


def test_preprocess_may_make_tuples_dicts_numbers_and_lists() -> None:
    for preprocess in (
        lambda v: (torch.tensor(v), np.float32(1)),
        lambda v: {"b": v, "a": np.array(1.0)},
        lambda v: [torch.tensor(v), torch.tensor(1.0)],
        lambda v: (v, 1),
    ):
        predictor = Predictor(Summed(), preprocess=preprocess)
        assert values(predictor.predict([1.0, 2.0, 3.0])) == [2.0, 3.0, 4.0]


def test_several_number_fields_are_one_vector() -> None:
    model = torch.nn.Linear(2, 1)
    [row] = values(Predictor(model).predict([{"price": 3, "meta.weight": 0.5}]))
    assert torch.allclose(row, model(torch.tensor([3.0, 0.5])))


def test_several_other_fields_are_named_arguments() -> None:
    class Model(torch.nn.Module):
        def forward(self, picture: torch.Tensor, meta_price: torch.Tensor) -> torch.Tensor:
            return picture.sum(1) + meta_price

    inputs = [{"picture": torch.ones(4), "meta.price": n} for n in (1, 2.5)]
    assert values(Predictor(Model()).predict(inputs)) == [5.0, 6.5]


def test_given_functions_win_over_methods() -> None:
    model = MyModel(LABELS, 2)
    predictor = Predictor(model, preprocess=lambda v: torch.zeros(2), postprocess=lambda row: "x")
    assert values(predictor.predict(["anything"])) == ["x"]


def test_batch_functions() -> None:
    class Model(Doubled):
        def preprocess_batch(self, many: list[str]) -> torch.Tensor:
            return torch.tensor([float(one) for one in many])

        def postprocess_batch(self, rows: list[torch.Tensor]) -> list[str]:
            return [f"{row.item():.0f}" for row in rows]

    outcomes = Predictor(Model()).predict(["1", "2", "no", "4"])
    assert [outcome.get("value") for outcome in outcomes] == ["2", "4", None, "8"]
    assert "could not convert" in outcomes[2]["error"]["message"]


def test_outputs_may_be_tuples_dicts_and_lists() -> None:
    class Model(torch.nn.Module):
        def __init__(self, output: Any) -> None:
            super().__init__()
            self.output = output

        def forward(self, x: torch.Tensor) -> Any:
            return self.output(x)

    inputs = [torch.tensor(1.0), torch.tensor(2.0)]
    for output, expected in (
        (lambda x: (x, x * 2), [[1.0, 2.0], [2.0, 4.0]]),
        (lambda x: [x, x * 2], [[1.0, 2.0], [2.0, 4.0]]),
        (
            lambda x: {"a": x, "b": (x,), "c": None},
            [{"a": 1.0, "b": [1.0]}, {"a": 2.0, "b": [2.0]}],
        ),
        (lambda x: [f"{n:.0f}" for n in x], ["1", "2"]),
        (lambda x: x.numpy(), [1.0, 2.0]),
    ):
        assert values(Predictor(Model(output)).predict(inputs)) == expected


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x[:2], "returned 2 rows for 3 inputs"),
        (lambda x: {"a": x, "b": x[:1]}, "output 'b' returned 1 rows for 3 inputs"),
        (lambda x: x.sum(), "a single number for 3 inputs"),
        (lambda x: ["a"], "returned 1 rows for 3 inputs"),
        (lambda x: 7, "returned one int for 3 inputs"),
    ],
)
def test_a_wrong_number_of_rows_is_an_error_that_states_both(output: Any, message: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return output(x)

    outcomes = Predictor(Model()).predict([1.0, 2.0, 3.0])
    assert len(outcomes) == 3
    for outcome in outcomes:
        assert message in outcome["error"]["message"]


def test_a_value_that_fails_fails_alone() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((x == 13).any()):
                raise ValueError("13 brings bad luck")
            if bool((x == 14).any()):
                raise SystemExit(3)
            return x

        def preprocess(self, value: float) -> torch.Tensor:
            return torch.tensor(1 / value)

        def postprocess(self, row: torch.Tensor) -> float:
            if row == 5:
                raise KeyError("five")
            return float(row)

    calls = Predictor(Model(), preprocess=lambda v: torch.tensor(float(v))).predict(range(20))
    assert [i for i, outcome in enumerate(calls) if "error" in outcome] == [5, 13, 14]
    assert calls[13]["error"]["type"] == "ValueError"
    assert "bad luck" in calls[13]["error"]["message"]
    assert "in forward" in calls[13]["error"]["traceback"]
    assert "superduper/serving" not in calls[13]["error"]["traceback"]
    assert "sys.exit(3)" in calls[14]["error"]["message"]
    divided = Predictor(Model()).predict([1.0, 0.0, 2.0])
    assert [outcome.get("value") for outcome in divided] == [1.0, None, 0.5]
    assert divided[1]["error"]["type"] == "ZeroDivisionError"


def test_samples_of_another_shape_or_datatype_do_not_disturb() -> None:
    outcomes = Predictor(torch.nn.Linear(3, 1)).predict(
        [torch.ones(3), torch.ones(4), torch.ones(3), "text", torch.ones(3, dtype=torch.float64)]
    )
    assert ["error" in outcome for outcome in outcomes] == [False, True, False, True, False]


def test_samples_of_any_shape_for_a_model_that_takes_any() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1)

    inputs = [torch.ones(n) for n in (1, 2, 3, 2, 1)]
    assert values(Predictor(Model()).predict(inputs)) == [1, 2, 3, 2, 1]


def test_an_empty_list_says_so_and_fails_alone() -> None:
    told = Predictor(torch.nn.Linear(1, 1)).predict([[], [1.0], {}])
    assert "an empty list or document" in told[0]["error"]["message"]
    assert "an empty list or document" in told[2]["error"]["message"]
    assert "value" in told[1]


def test_nan_passes() -> None:
    [value] = values(Predictor(Doubled()).predict([float("nan")]))
    assert value != value


def test_nothing_in_nothing_out() -> None:
    assert Predictor(Doubled()).predict([]) == []


def test_confidence() -> None:
    class Model(MyModel):
        def confidence(self, output: torch.Tensor) -> torch.Tensor:
            return output.softmax(0).max()

    predictor = Predictor(Model(LABELS, 2))
    [outcome] = predictor.predict([torch.ones(2)])
    assert predictor.has_confidence
    assert 1 / 3 <= outcome["confidence"] <= 1
    assert isinstance(outcome["confidence"], float)
    Model.confidence = lambda self, output: 7
    [outcome] = Predictor(Model(LABELS, 2)).predict([torch.ones(2)])
    assert "between 0 and 1, not 7" in outcome["error"]["message"]
    Model.confidence = lambda self, output: float("nan")
    [outcome] = Predictor(Model(LABELS, 2)).predict([torch.ones(2)])
    assert "not nan" in outcome["error"]["message"]


def test_layers_named_like_our_methods_are_left_alone() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.preprocess = torch.nn.Linear(2, 2)
            self.confidence = torch.nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.confidence(self.preprocess(x))

    predictor = Predictor(Model())
    assert not predictor.has_confidence
    assert len(values(predictor.predict([torch.ones(2)]))) == 1


def test_an_exception_that_cannot_be_printed() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def fail(value: Any) -> None:
        raise Odd

    [outcome] = Predictor(fail).predict([1])
    assert outcome["error"]["type"] == "Odd"
    assert "cannot be printed" in outcome["error"]["message"]
