"""The guide to fits says what is so, on both transports."""

import re
from pathlib import Path

import pytest
import torch

from superduper.errors import InUse, InvalidInput, UserCodeError
from superduper.training import Constant, Policy

pytestmark = pytest.mark.usefixtures("worker")
WEIGHT = [torch.nn.Parameter(torch.zeros(1))]
GUIDE = Path(__file__).parent.parent.parent / "docs" / "fits.md"


def test_the_guide_trains_what_it_shows(docs):
    names = {"docs": docs}
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.S | re.M):
        exec(compile(block, str(GUIDE), "exec"), names)
    first, second = names["imputation"], names["in_turn"]
    first.wait(timeout=120, progress=False)
    second.wait(timeout=120, progress=False)

    assert {row["name"] for row in docs.list("policy")} == {"y_from_x_policy_1", "y_from_x_lr"}
    assert [row["name"] for row in docs.list("optimizer")] == ["y_from_x_optimizer"]
    assert [row["name"] for row in docs.list("trainer")] == ["in_turn_trainer"]
    for kind in ("policy", "optimizer", "trainer"):
        with pytest.raises(InUse):
            docs.delete(kind, docs.list(kind)[0]["name"])

    runs = {run["imputation"].split("/")[1]: run for run in docs.runs()}
    assert runs["y_from_x"]["stopped"].startswith("every label was right after")
    assert runs["y_from_x"]["metrics"]["accuracy"] > 0.8
    assert runs["in_turn"]["metrics"]["right"] > 0.8
    again = names["docs"].create_imputation(
        "in_turn",
        model="side",
        model_key="x",
        target="number",
        target_key="y",
        trainer=names["InTurn"],
        watch="right",
        lr=0.1,
        fill=False,
    )
    assert again.version == 1  # the same declaration changes nothing


def test_what_a_policy_raises_is_told_with_its_kind(docs):
    class Broken(Policy):
        def epoch_finished(self):
            raise ZeroDivisionError("in a policy")

    docs.insert_many({"_id": i, "x": [i, -i], "y": float(i)} for i in range(40))
    docs.create_model("line", torch.nn.Linear(2, 1))
    docs.create_loss("mse", torch.nn.MSELoss())
    names = {"model": "line", "model_key": "x", "target_key": "y", "loss": "mse"}
    imputation = docs.create_imputation(**names, policies=[Broken()])
    with pytest.raises(UserCodeError, match="'y_from_x': ZeroDivisionError: in a policy"):
        imputation.wait(timeout=120, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimizer": torch.optim.Adam(WEIGHT)},
            r"optimizer is a Adam of a model that is here.*torch\.optim\.Adam",
        ),
        (
            {"policies": [torch.optim.lr_scheduler.StepLR(torch.optim.SGD(WEIGHT, 0.1), 1)]},
            'policy_1 is a StepLR of an optimizer that is here.*"name": "StepLR"',
        ),
        ({"policies": [Constant]}, "policy_1 is the class Constant: give an instance"),
        ({"lr": Constant}, "lr is the class Constant: give an instance"),
        ({"trainer": object()}, "trainer is a object: give a Trainer subclass"),
        ({"lr": -1}, "lr: Input should be greater than 0"),
    ],
)
def test_objects_that_cannot_be_what_they_are_given_as(docs, settings, message):
    with pytest.raises(InvalidInput, match=message):
        docs.create_imputation(model="m", model_key="x", target_key="y", loss="l", **settings)
