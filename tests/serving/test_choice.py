"""Faster forms beside the plain one: which serve, which may not, and that this is told."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from superduper.fields import codec
from superduper.serving import choice
from superduper.serving.agreement import Agreement, Limits, compare
from superduper.serving.predictor import Predictor

DIM = 16
INPUTS = [torch.randn(DIM, generator=torch.Generator().manual_seed(n)) for n in range(20)]
LIMITS = Limits(0.05, None)


class Layers(torch.nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(DIM, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)
        )

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


class Named(Layers):
    """Takes fields by name and gives several."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return {"sum": self.layers(a + b), "pair": (a.sum(1), b)}


class Labels(Layers):
    """Says which score is the largest; scores are close to each other."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x) * 1e-4 + 1

    def postprocess(self, row: torch.Tensor) -> str:
        return "abc"[int(row.argmax())]


class Cancels(Layers):
    """What is left after large numbers have cancelled; 16 bits are too few for it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layers(x) + 4096) - 4096


class Overflows(Layers):
    """The largest number of 32 bits is too large for bfloat16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(self.layers(x)) * torch.finfo(torch.float32).max


class Slower(Layers):
    """A processor that is bad at 16 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(200 if x.dtype == torch.bfloat16 else 0):
            x = x + x.cos() * 0
        return self.layers(x)


class Decides(Layers):
    """Looks at its numbers before it goes on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) if bool(x.sum() > 0) else x[:, :3]


class AnyWidth(Layers):
    """As many numbers as there are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)[:, -1:] * self.layers[0].weight[0, 0]


@pytest.fixture
def speed_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which form is faster depends on the processor."""
    monkeypatch.setattr(choice, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(choice, "MEASURE_SECONDS", 0.0)


@pytest.fixture
def compiler() -> Iterator[None]:
    """What torch's compiler remembers is forgotten afterwards."""
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def chosen(
    model: Any, form: str, values: list[Any] | None = None, limits: Limits = LIMITS
) -> tuple[Predictor, choice.Report]:
    predictor = Predictor(model)
    given = INPUTS if values is None else values
    stored = [codec.encode(value) for value in given]
    return predictor, choice.choose(predictor, stored, form, limits)


def outputs(predictor: Predictor, values: list[Any]) -> list[Any]:
    return [outcome["value"] for outcome in predictor.predict(values)]


@pytest.mark.parametrize("form", ["bf16", "int8", "onnx", "compiled"])
@pytest.mark.usefixtures("speed_is_no_matter", "compiler")
def test_a_form_that_agrees_serves(form: str) -> None:
    exact = outputs(Predictor(Layers()), INPUTS)
    predictor, report = chosen(Layers(), form)

    assert report["serves"] == form and report["why"] is None and report["inputs"] == len(INPUTS)
    [tried] = report["tried"]
    assert tried["form"] == form and tried["why"] is None and tried["same"] is None
    assert 0 <= tried["difference"] < 0.05 and tried["speedup"] > 0
    assert tried["speedups"].keys() == {"1", "64"}
    made = outputs(predictor, INPUTS)
    if form in ("bf16", "int8"):  # the others may be the same to the bit
        assert not all(torch.equal(a, b) for a, b in zip(exact, made, strict=True))
    for one, other in zip(exact, made, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)
    assert predictor.faster is not None and predictor.faster.left == 0
    predictor.faster = None
    assert all(torch.equal(a, b) for a, b in zip(exact, outputs(predictor, INPUTS), strict=True))


@pytest.mark.parametrize("form", ["bf16", "int8", "onnx"])
@pytest.mark.usefixtures("speed_is_no_matter")
def test_fields_and_outputs_keep_their_names(form: str) -> None:
    values = [{"a": a.tolist(), "b": b.tolist()} for a, b in zip(INPUTS, INPUTS[1:], strict=False)]
    exact = outputs(Predictor(Named()), values)
    predictor, report = chosen(Named(), form, values)
    assert report["serves"] == form, report
    made = outputs(predictor, values)
    assert made[0].keys() == {"sum", "pair"} and len(made[0]["pair"]) == 2
    torch.testing.assert_close(made[3]["sum"], exact[3]["sum"], atol=0.05, rtol=0.05)
    torch.testing.assert_close(made[3]["pair"][1], exact[3]["pair"][1], atol=0.05, rtol=0.05)


@pytest.mark.usefixtures("speed_is_no_matter")
@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Cancels(), "bf16: numbers differ by .* of the largest, and 0.05 is the tolerance"),
        (Overflows(), "bf16: it gives a number that is not finite"),
        (Labels(), "bf16: labels are the same for 0.* of the inputs, and 0.99 is demanded"),
        (torch.nn.Sequential(torch.nn.Flatten()), "bf16: it cannot be made: its weights are not"),
        (Layers().to(torch.bfloat16), "its weights are not of one datatype that has more bits"),
    ],
)
def test_a_form_that_does_not_agree_may_not_serve(model: Any, why: str) -> None:
    exact = outputs(Predictor(model), INPUTS)
    predictor, report = chosen(model, "bf16")
    assert report["serves"] == "plain" and predictor.faster is None
    assert report["why"] == "; ".join(f"{row['form']}: {row['why']}" for row in report["tried"])
    assert re.search(why, report["why"]), report["why"]
    for one, other in zip(exact, outputs(predictor, INPUTS), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.usefixtures("speed_is_no_matter")
def test_rows_of_scores_have_labels_if_that_is_told() -> None:
    class Scores(Labels):
        postprocess = None  # type: ignore[assignment]

    assert chosen(Scores(), "bf16")[1]["serves"] == "bf16"
    report = chosen(Scores(), "bf16", limits=Limits(0.05, 1.0))[1]
    assert report["serves"] == "plain" and "and 1 is demanded" in report["why"]
    assert report["tried"][0]["difference"] < 0.05 and report["tried"][0]["same"] < 1


def test_what_is_not_faster_may_not_serve() -> None:
    predictor, report = chosen(Slower(), "bf16")
    assert report["serves"] == "plain" and predictor.faster is None
    assert "bf16: it is not faster: 0." in report["why"]
    assert report["tried"][0]["speedup"] < 1 and report["tried"][0]["difference"] < 0.05


@pytest.mark.usefixtures("speed_is_no_matter")
def test_what_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch, compiler: None) -> None:
    report = chosen(Decides(), "onnx")[1]
    assert report["serves"] == "plain" and "onnx: it cannot be made: " in report["why"]
    assert "no linear layer" in chosen(torch.nn.Sequential(torch.nn.Tanh()), "int8")[1]["why"]
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)}):
        report = chosen(Layers(), "compiled")[1]
    assert report["serves"] == "plain" and "compiled: it cannot be made: " in report["why"]
    assert "compiler" in report["why"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'superduper-imputations[onnx]'" in chosen(Layers(), "onnx")[1]["why"]


@pytest.mark.parametrize("model", [LinearRegression().fit([[1.0]] * 2, [1, 2]), lambda x: x])
def test_only_modules_have_forms(model: Any) -> None:
    predictor, report = chosen(model, "auto", [[1.0]])
    assert report["serves"] == "plain" and report["why"] == "only a torch module has other forms"
    assert report["tried"] == [] and predictor.faster is None


@pytest.mark.usefixtures("speed_is_no_matter")
def test_inputs_that_the_model_itself_fails_on_do_not_count() -> None:
    report = chosen(Layers(), "bf16", [torch.ones(3), *INPUTS])[1]
    assert report["serves"] == "bf16" and report["inputs"] == len(INPUTS)
    report = chosen(Layers(), "bf16", [torch.ones(3)])[1]
    assert report["serves"] == "plain" and report["inputs"] == 0
    assert report["why"] == "the model itself fails on every input that it is compared on"


def test_auto_takes_the_fastest_of_those_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from superduper.serving import forms

    monkeypatch.setattr(forms, "FORMS", ("bf16", "int8", "onnx"))
    report = chosen(Layers(), "auto")[1]
    fit = [row for row in report["tried"] if row["why"] is None]
    assert [row["form"] for row in report["tried"]] == ["bf16", "int8", "onnx"]
    best = max(fit, key=lambda row: row["speedup"])["form"] if fit else "plain"
    assert report["serves"] == best
    monkeypatch.setattr(choice, "LEAST_SPEEDUP", 0.0)
    report = chosen(Layers(), "auto", limits=Limits(1e-5, None))[1]
    assert report["serves"] == "onnx"  # the others are not so exact
    monkeypatch.setattr(choice, "ENOUGH_SECONDS", 0.0)
    report = chosen(Layers(), "auto")[1]
    assert report["serves"] == "bf16"
    assert {row["why"] for row in report["tried"][1:]} == {"there was no time left to try it"}


@pytest.mark.usefixtures("speed_is_no_matter")
def test_the_plain_form_answers_what_the_faster_one_cannot() -> None:
    predictor, report = chosen(AnyWidth(), "onnx")
    assert report["serves"] == "onnx"
    exact = outputs(Predictor(AnyWidth()), [torch.ones(5)])
    assert torch.equal(outputs(predictor, [torch.ones(5)])[0], exact[0])
    assert predictor.faster is not None and predictor.faster.left == 1
    [outcome] = predictor.predict([torch.full((DIM,), 1e38)])  # too large for anyone
    assert outcome["value"].isinf().all() and predictor.faster.left == 2


# Agreement ------------------------------------------------------------------------------------


def agreed(one: list[Any], other: list[Any], limits: Limits = LIMITS, **beside: Any) -> Agreement:
    first = [{"value": codec.encode(value), **beside} for value in one]
    return compare(first, [{"value": codec.encode(value)} | beside for value in other], limits)


def test_numbers_are_measured_by_the_largest_in_their_place() -> None:
    assert agreed([1.0, 0.001, -4.0], [1.0, 0.101, -4.0]) == Agreement(0.1 / 4, None)
    fields = [{"a": 1.0, "b": [10.0, 20.0]}], [{"a": 1.5, "b": [10.0, 19.0]}]
    assert agreed(*fields) == Agreement(0.5, None)
    assert agreed([np.zeros(3, "f4")], [np.zeros(3, "f4")]) == Agreement(0.0, None)
    assert agreed([0.0], [1e-9]).difference == float("inf")
    assert agreed([float("nan"), 1.0], [float("nan"), 1.0]).difference == 0
    assert agreed([1.0], [float("inf")]).difference == float("inf")
    assert agreed([1.0], [float("inf")]).refused(Limits(1e9, None)) is not None


def test_whatever_else_there_is_is_the_same_or_not() -> None:
    assert agreed(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == Agreement(0.0, 0.75)
    assert agreed([1, 2], [1, 3]).same == 0.5
    assert agreed([[1.0, "a"]], [[1.0]]).same == 0
    assert agreed([{"a": 1.0}], [{"b": 1.0}]).same == 0
    assert agreed([np.arange(3)], [np.arange(3)]).same == 1
    assert agreed([np.ones(3, "f4")], [np.ones(4, "f4")]).same == 0
    assert agreed([True, None], [True, None]) == Agreement(0.0, 1.0)
    assert agreed(["a"] * 100, ["a"] * 99 + ["b"]).refused(Limits(0, None)) is None
    assert agreed(["a"] * 100, ["a"] * 99 + ["b"]).refused(Limits(0, 1.0)) is not None


def test_confidence_and_second_choice_are_compared_too() -> None:
    def told(value: str, confidence: float, second: str) -> list[dict[str, Any]]:
        return [{"value": value, "confidence": confidence, "runner_up": second}]

    found = compare(told("a", 0.02, "b"), told("a", 0.03, "b"), LIMITS)
    assert found.difference == pytest.approx(0.01) and found.same == 1
    assert compare(told("a", 0.5, "b"), told("a", 0.5, "c"), LIMITS).same == 0
    failed = [{"error": {"type": "ValueError", "message": "no"}}]
    assert compare(told("a", 0.5, "b"), failed, LIMITS).same == 0
