"""How an imputation is trained: a trainer's own steps, optimizers, schedules and policies."""

import functools
from typing import Any

import pytest
import torch
from pymongo.database import Database

from superduper.errors import InvalidInput, UserCodeError
from superduper.training.multiple_optimizers import MultipleOptimizers
from superduper.training.policies import EarlyStopping, Policy
from superduper.training.trainer import Trainer
from superduper.training.values import Exponential
from tests.imputations.fitting import Classifier, Fitting, points


@pytest.fixture
def fitting(database: Database[Any]) -> Fitting:
    found = Fitting(database)
    found.insert(points(100), _fold="train")
    found.insert(points(30, 100, seed=1), _fold="valid")
    return found


class TwoLayers(torch.nn.Module):
    """Two parts that are trained by an optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Linear(2, 4)
        self.dropout = torch.nn.Dropout(0.1)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(torch.tanh(self.encoder(x))))  # type: ignore[no-any-return]

    def postprocess(self, row: torch.Tensor) -> str:
        return ["low", "high"][int(row.argmax())]


class InTurn(Trainer):
    """Each step trains the head, and then the encoder."""

    @classmethod
    def make_optimizer(cls, model: Any, lr: float) -> MultipleOptimizers:
        return MultipleOptimizers(
            head=torch.optim.Adam(model.head.parameters(), lr=lr),
            encoder=torch.optim.SGD(model.encoder.parameters(), lr=lr),
        )

    def log_prob(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        predicted = torch.distributions.Categorical(logits=self.model(features))
        return predicted.log_prob(labels)

    def train_batch(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        for optimizer in (self.optimizer.head, self.optimizer.encoder):
            log_prob = self.log_prob(features, labels)
            optimizer.zero_grad()
            (-log_prob.mean() * self.config["scale"]).backward()
            optimizer.step()
        return {"log_prob": log_prob.sum()}

    def evaluate_batch(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        return {"log_prob": self.log_prob(features, labels).sum()}

    def summarize_epoch(self, train_results: Any, validate_results: Any, epoch: int) -> Any:
        zipped = self.zip_dicts(validate_results)
        return {"summed": sum(zipped["log_prob"]) / len(self.validate_loader.dataset)}


def test_a_trainers_own_steps_and_optimizers(fitting: Fitting) -> None:
    fitting.register_all(TwoLayers())
    fitting.register("trainer", "in_turn", InTurn)
    record = fitting.declare(
        loss=None,
        trainer={"name": "in_turn", "arguments": {"scale": 1.0}},
        watch="log_prob",
        lr=0.02,
        max_epochs=15,
    )
    run = fitting.fit(record)
    assert run["best"]["accuracy"] > 0.9
    assert run["best"]["log_prob"] == max(row["log_prob"] for row in run["history"])
    assert run["higher_is_better"] == {"log_prob": True, "accuracy": True}
    assert run["promoted"] and run["version"] == 1
    for row in run["history"][1:]:  # 30 records in batches of 16 and 14: sums, not means of means
        assert row["summed"] == pytest.approx(row["log_prob"])
    assert run["settings"]["trainer"] == {"name": "in_turn", "arguments": {"scale": 1.0}}

    change = fitting.imputations.documents.update_one
    change({"_id": record.id}, {"$set": {"spec.max_epochs": 1}})
    worse = fitting.fit(record)  # compared with the live version by the trainer's own measure
    assert not worse["promoted"] and "log_prob" in worse["reason"]


class Lazy(Classifier):
    """Learns from the first record how many numbers there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LazyLinear(2)  # type: ignore[assignment]


def test_what_a_step_raises_is_told_with_its_documents(fitting: Fitting) -> None:
    """A distribution refuses what is no number before there is a loss to look at."""
    fitting.register_all(TwoLayers())
    fitting.register("trainer", "in_turn", InTurn)
    fitting.insert({777: (torch.tensor([float("nan"), 0.0]), "low")}, _fold="train")
    named = {"name": "in_turn", "arguments": {"scale": 1.0}}
    with pytest.raises(
        UserCodeError, match=r"(?s)invalid values.*in step \d+ .*documents .*\b777\b"
    ):
        fitting.fit(fitting.declare(loss=None, trainer=named, watch="log_prob", lr=0.02))


def test_a_fit_in_two_processes_learns_what_it_learns_in_one(fitting: Fitting) -> None:
    fitting.register_all(Lazy())
    alone = fitting.fit(fitting.declare(max_epochs=3))
    fitting.imputations.delete(fitting.imputations.get("docs", "y_from_x"))
    fitting.register("model", "again", Lazy())
    shared = fitting.fit(fitting.declare(max_epochs=3, name="again", model="again", processes=2))
    assert shared["settings"]["processes"] == 2
    for one, two in zip(alone["history"], shared["history"], strict=True):
        assert two == pytest.approx(one, abs=1e-5)


def test_a_registered_loss_is_measured_beside_a_trainers_steps(fitting: Fitting) -> None:
    fitting.register_all(TwoLayers())
    fitting.register("trainer", "in_turn", InTurn)
    named = {"name": "in_turn", "arguments": {"scale": 1.0}}
    run = fitting.fit(fitting.declare(trainer=named, max_epochs=2))
    for row in run["history"]:
        assert row["loss"] == pytest.approx(-row["log_prob"])


class Third(Policy):
    """Ends the training after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def epoch_finished(self, epoch: int, train_losses: Any, metrics: Any = None) -> None:
        assert len(train_losses) == 7 and set(metrics) == {"loss", "accuracy"}
        if epoch + 1 == self.epochs:
            raise EarlyStopping("it is enough")


class Slow(torch.optim.SGD):
    """An optimizer of the user's."""


def test_optimizer_schedule_and_policies_as_objects(fitting: Fitting) -> None:
    fitting.register_all()
    fitting.register("optimizer", "slow", functools.partial(Slow, momentum=0.9))
    fitting.register("policy", "rate", Exponential(0.1, 0.5))
    fitting.register("policy", "third", Third)
    third = {"name": "third", "arguments": {"epochs": 3}}
    run = fitting.fit(fitting.declare(optimizer="slow", lr={"name": "rate"}, policies=(third,)))
    assert (run["stopped"], run["history"][-1]["epoch"]) == ("it is enough", 3)


def test_a_target_by_name_ends_a_fit(fitting: Fitting) -> None:
    fitting.register_all(TwoLayers())
    target = {"name": "TargetStop", "arguments": {"metric": "accuracy", "value": 0.9}}
    run = fitting.fit(fitting.declare(policies=(target,), lr=0.05, max_epochs=50))
    assert run["stopped"].startswith("accuracy has reached") and run["best"]["accuracy"] >= 0.9
    assert all(row["accuracy"] < 0.9 for row in run["history"][:-1])


def test_policies_and_schedules_by_name_are_those_written_out(fitting: Fitting) -> None:
    """A schedule of ours and one of torch's that mean the same end with the same weights."""
    fitting.register_all()
    lr = {"name": "Schedule", "arguments": {"initial": 0.1, "epoch2value_multiplier": {"1": 0.1}}}
    sgd = {"name": "sgd", "arguments": {"momentum": 0.5}}
    stop = {"name": "NEpochs", "arguments": {"n_epochs": 2}}
    first = fitting.fit(fitting.declare(name="a", optimizer=sgd, lr=lr, policies=(stop,)))
    steps = {"name": "MultiStepLR", "arguments": {"milestones": [1], "gamma": 0.1}}
    fitting.imputations.delete(fitting.imputations.get("docs", "a"))
    fitting.register("model", "untrained", Classifier())
    same = {"name": "b", "model": "untrained", "optimizer": sgd, "max_epochs": 2}
    again = fitting.fit(fitting.declare(**same, lr=0.1, policies=(steps,)))
    assert first["final_hash"] == again["final_hash"] != first["initial_hash"]
    assert first["stopped"] == "2 epochs are done"


class NoTrainer:
    """Not derived from Trainer."""


class NoPolicy:
    """Not derived from Policy."""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policies": ("Nonsense",)}, "no policy 'Nonsense': register it"),
        ({"policies": ({"name": "TimeStop", "arguments": {"years": 1}},)}, "'TimeStop' refused"),
        ({"policies": ({"name": "Constant", "arguments": {"initial": 1}},)}, "pass it as lr"),
        ({"lr": {"name": "NaNStop"}}, "lr='NaNStop' carries no value"),
        ({"trainer": "none"}, "NoTrainer is no subclass of superduper.training.Trainer"),
        ({"policies": ("broken",)}, "ZeroDivisionError"),
        ({"policies": ("none",)}, "policy 'none' is a NoPolicy: derive it from superduper.trai"),
        ({"model": "wide"}, r"cannot be multiplied .*; it was given a batch of shape \(16, 2\)"),
        ({"optimizer": "foreign"}, "foreign has 1 parameters that are not"),
    ],
)
def test_what_cannot_be_trained_with_is_said(
    fitting: Fitting, settings: dict[str, Any], message: str
) -> None:
    class Broken(Policy):
        def epoch_finished(self) -> None:
            raise ZeroDivisionError("in a policy")

    fitting.register_all()
    fitting.register("trainer", "none", NoTrainer)
    fitting.register("policy", "broken", Broken())
    fitting.register("policy", "none", NoPolicy())
    fitting.register("model", "wide", torch.nn.Linear(3, 2))
    other = torch.nn.Parameter(torch.zeros(1))
    fitting.register("optimizer", "foreign", lambda parameters: torch.optim.SGD([other], lr=0.1))
    with pytest.raises((InvalidInput, UserCodeError), match=message):
        fitting.fit(fitting.declare(**settings))
