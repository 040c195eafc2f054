"""Faster forms of a model, on both transports: wished for, tried, told, taken back."""

import os

import pytest
import torch

from superduper.errors import InvalidInput, NotFound

DIM = 8


class Fast16(torch.nn.Module):
    """Much faster with 16 bits, on any processor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(DIM, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(300 if x.dtype == torch.float32 else 0):
            x = x + x.cos() * 0
        return self.layer(x)


class Cancels16(Fast16):
    """What 16 bits are too few for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (super().forward(x) + 4096) - 4096


class Dies16(Fast16):
    """Ends its process if it is given 16 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            os._exit(9)
        return super().forward(x)


def exact(model: torch.nn.Module, value: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(value[None])[0]


@pytest.fixture
def value() -> torch.Tensor:
    return torch.linspace(-1, 1, DIM)


def test_a_model_is_registered_with_a_form(docs, value):
    found = docs.create_model("m", Fast16(), sample=value, form="bf16")

    form = found["form"]
    assert form["form"] == "bf16" and form["tolerance"] == 0.01 and form["agreement"] is None
    report = form["report"]
    assert report["serves"] == "bf16" and report["why"] is None and report["inputs"] == 1
    assert report["tried"][0]["speedup"] > 1.1
    output = docs.predict("m", value)
    wanted = exact(Fast16(), value)
    assert not torch.equal(output, wanted)
    torch.testing.assert_close(output, wanted, atol=0.02, rtol=0.02)
    assert docs.show("model", "m")["form"]["report"]["serves"] == "bf16"
    assert [row["form"] for row in docs.list("model")] == ["bf16"]
    assert docs.model("m").form() == docs.show("model", "m")["form"]


def test_the_form_of_a_live_model_is_changed_and_taken_back(docs, value):
    docs.create_model("m", Fast16(), sample=value)
    wanted = exact(Fast16(), value)
    assert torch.equal(docs.predict("m", value), wanted)
    assert docs.model("m").form()["form"] == "plain" and docs.list("model")[0]["form"] == "plain"

    told = docs.model("m").set_form("bf16", [value * n for n in range(1, 5)], tolerance=0.05)
    assert told["tolerance"] == 0.05 and told["report"]["serves"] == "bf16"
    assert told["report"]["inputs"] == 5  # and the sample
    assert not torch.equal(docs.predict("m", value), wanted)
    explained = docs.model("m").explain(value)
    assert not torch.equal(torch.as_tensor(explained["value"]), wanted)

    # What is known to compare on stays known.
    told = docs.model("m").set_form("bf16", tolerance=1e-9)
    assert told["report"]["serves"] == "plain" and told["report"]["inputs"] == 5
    assert "and 1e-09 is the tolerance" in told["report"]["why"]
    assert torch.equal(docs.predict("m", value), wanted)

    docs.model("m").set_form("bf16")
    assert not torch.equal(docs.predict("m", value), wanted)
    told = docs.model("m").set_form("plain")
    assert told["form"] == "plain" and told["report"] is None
    assert torch.equal(docs.predict("m", value), wanted)


def test_a_form_that_does_not_agree_leaves_the_plain_one(docs, value):
    found = docs.create_model("m", Cancels16(), sample=value, form="bf16")
    report = found["form"]["report"]
    assert report["serves"] == "plain" and report["tried"][0]["difference"] > 0.01
    assert torch.equal(docs.predict("m", value), exact(Cancels16(), value))
    assert docs.list("model")[0]["form"] == "plain"


def test_a_form_that_ends_the_process_leaves_the_plain_one(docs, value):
    found = docs.create_model("m", Dies16(), sample=value, form="bf16")
    report = found["form"]["report"]
    assert report["serves"] == "plain" and "it cannot be tried" in report["why"]
    assert torch.equal(docs.predict("m", value), exact(Dies16(), value))


def test_without_an_input_to_compare_on_a_form_is_refused(docs, value):
    with pytest.raises(InvalidInput, match="'m' is compared .* on inputs: .* with a sample"):
        docs.create_model("m", Fast16(), form="bf16")
    with pytest.raises(NotFound):
        docs.show("model", "m")
    docs.create_model("m", Fast16())
    with pytest.raises(InvalidInput, match="inputs: give some"):
        docs.model("m").set_form("auto")
    assert docs.model("m").form()["form"] == "plain"
    docs.model("m").set_form("plain")


def test_a_form_that_is_not_known_is_refused(docs, value):
    with pytest.raises(InvalidInput, match="form: .*'plain', 'bf16', 'int8', 'onnx'"):
        docs.create_model("m", Fast16(), sample=value, form="fp4")
    docs.create_model("m", Fast16(), sample=value)
    with pytest.raises(InvalidInput, match="form: "):
        docs.model("m").set_form("fast")
    with pytest.raises(InvalidInput, match="tolerance: "):
        docs.model("m").set_form("bf16", tolerance=-1)
    with pytest.raises(InvalidInput, match="agreement: "):
        docs.model("m").set_form("bf16", agreement=1.5)
    with pytest.raises(InvalidInput, match="inputs: "):
        docs.model("m").set_form("bf16", [])
    with pytest.raises(NotFound):
        docs.model("nothing").set_form("bf16", [value])
    with pytest.raises(InvalidInput, match="more than 8 MiB"):
        docs.model("m").set_form("bf16", [torch.zeros(1_500_000)] * 2)


def test_a_new_version_has_the_model_s_form(docs, value):
    docs.create_model("m", Fast16(), sample=value, form="bf16")
    docs.create_model("m", Cancels16(), sample=value)
    assert docs.show("model", "m")["version"] == 2
    assert torch.equal(docs.predict("m", value), exact(Cancels16(), value))
    form = docs.model("m").form()
    assert form["form"] == "bf16" and form["report"]["serves"] == "plain"
    docs.delete("model", "m")
    docs.create_model("m", Fast16(), sample=value)
    assert docs.model("m").form()["form"] == "plain"
