"""Every recorded example of the project that `train_model` comes from."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from superduper.training import (
    ConsoleLogger,
    Constant,
    DecreasingOnPlateau,
    EarlyStopping,
    Exponential,
    Infinite,
    LambdaEpoch,
    LossStop,
    Policy,
    Schedule,
    Switch,
    TorchModel,
    ValuePolicy,
    load_by_random_id,
    train_model,
)
from superduper.training.event_file import read_scalars
from superduper.training.values import mean_loss

EXAMPLES = {
    example["id"]: example
    for example in json.loads(
        (Path(__file__).parent / "seed_examples.json").read_text(encoding="utf-8")
    )["examples"]
}


class Fake:
    """A model that answers losses that were thought up, and notes what it is given."""

    def __init__(self, losses: Sequence[Any] = ()) -> None:
        self.losses = iter(losses)
        self.given: list[dict[str, Any]] = []

    def do_train_step(self, *inputs: Any, **values: Any) -> Any:
        self.given.append(values)
        return next(self.losses, 1.0)


def batches(n: int) -> list[Any]:
    return [(np.zeros((2, 1)), np.zeros(2))] * n


def values_of(policy: ValuePolicy, n_epochs: int) -> list[float]:
    model = Fake()
    train_model(model, batches(1), n_epochs=n_epochs, lr=policy)
    return [given["lr"] for given in model.given]


def test_dp_policy_values() -> None:
    example = EXAMPLES["dp-policy-values"]
    policies: list[tuple[ValuePolicy, int]] = [
        (Constant(0.3), 3),
        (Exponential(10, 0.5), 5),
        (Exponential(10, 0.5, step_length=2), 6),
        (Exponential(10, 0.5, step_length=2, floordiv=False), 5),
        (Exponential(1, 0.1, min_value=1e-3), 6),
        (Schedule(1, {2: 0.1, 5: 0.5}), 8),
        (Schedule.constant_multiplier(1e-2, 0.1, [2, 4]), 6),
        (Switch(0, {1: 10, 5: 3}), 8),
        (LambdaEpoch(lambda e, k: 1 / (1 + k * e), 2), 4),
    ]
    assert len(policies) == len(example["input"]["cases"])
    for (policy, n_epochs), expected in zip(policies, example["expected"], strict=True):
        assert values_of(policy, n_epochs) == pytest.approx(expected, abs=example["tolerance"])


def test_dp_policy_plateau() -> None:
    policy = DecreasingOnPlateau(initial=1.0, multiplier=0.5, patience=1, rtol=0.1)
    model = Fake([10, 5, 4.6, 4.7, 4.0, 3.9, 3.9, 3.9, 3.9])
    train_model(model, batches(1), n_epochs=9, lr=policy)
    # Of 5, 4.6 is not a tenth less, nor is 4.7: two epochs waited, more than the patience.
    expected = [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert [given["lr"] for given in model.given] == expected


def test_dp_policy_lossstop() -> None:
    example = EXAMPLES["dp-policy-lossstop"]
    for (losses, ratio), expected in zip(
        example["input"]["cases"], example["expected"], strict=True
    ):
        model = Fake(losses)
        train_model(model, batches(1), n_epochs=len(losses), lr=1, stop=LossStop(ratio))
        stopped_at = len(model.given) - 1
        assert stopped_at == (len(losses) - 1 if expected is None else expected)


@pytest.mark.parametrize(
    ("losses", "epochs"),
    [
        ([-1, -2, -1.9, -0.1], 4),  # over -2 by less than its size
        ([-1, -2, 0.1, -2], 3),
        ([-6, -6, -6, -7], 4),
        ([0, 0, 0.1, 0], 3),
    ],
)
def test_loss_stop_of_negative_losses(losses: list[float], epochs: int) -> None:
    model = Fake(losses)
    train_model(model, batches(1), n_epochs=4, lr=1, stop=LossStop(2))
    assert len(model.given) == epochs


def test_a_plateau_of_negative_losses() -> None:
    policy = DecreasingOnPlateau(initial=1.0, multiplier=0.5, patience=0, rtol=0.1)
    model = Fake([-10, -10, -10.9, -11.1, -11.2])
    train_model(model, batches(1), n_epochs=5, lr=policy)
    # Of -10, -11.1 is more than a tenth less; nothing before it is, nor is -11.2 of that.
    assert [given["lr"] for given in model.given] == [1, 1, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("losses", "mean"),
    [
        ([1, 2.0], 1.5),
        ([np.array([1.0, 3.0]), np.array([2.0, 2.0])], 2.0),  # what a model minimises of these
        ([torch.tensor(1.0), np.float32(3)], 2.0),
        ([{"loss": 1.0, "other": 9.0}, {"loss": 2.0, "other": 9.0}], 1.5),
        ([{"a": 1.0, "b": 2.0}], 3.0),
        ([math.nan, 1.0], math.nan),
        ([], math.nan),
    ],
)
def test_the_loss_of_an_epoch(losses: Any, mean: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert mean_loss(losses) == pytest.approx(mean, nan_ok=True)
    stop, plateau = LossStop(), DecreasingOnPlateau(initial=1, multiplier=0.5, patience=0)
    for _ in range(2):  # what is no number neither ends a training nor counts as a lower loss
        stop.epoch_finished(0, losses)
        plateau.epoch_finished(losses)
    assert plateau.value == (0.25 if math.isnan(mean) else 0.5)
    ConsoleLogger().epoch_finished(0, losses)
    assert capsys.readouterr().out.startswith("00000: Train loss: ")


@pytest.mark.parametrize("raised", [EarlyStopping, EarlyStopping("enough")])
def test_dp_early_stopping(raised: Any) -> None:
    """The recorded run's data is not known: here a regression whose loss falls at every epoch."""
    heard: list[int] = []
    means: list[float] = []

    class TrainLossStop(Policy):
        def epoch_finished(
            self, epoch: int, *, train_losses: Sequence[float], metrics: Any = None
        ) -> None:
            means.append(float(np.mean(train_losses)))
            if np.mean(train_losses) < 1e-2:
                raise raised

    class Hearing(Policy):
        def epoch_finished(self, epoch: int) -> None:
            heard.append(epoch)

    x = np.linspace(-1, 1, 16)[:, None]
    torch.manual_seed(0)
    model = TorchModel(
        torch.nn.Linear(1, 1), torch.nn.Identity(), torch.nn.MSELoss(), torch.optim.SGD
    )
    n_epochs = EXAMPLES["dp-early-stopping"]["input"]["n_epochs"]
    train_model(
        model, [(x, 2 * x)] * 10, n_epochs, lr=0.05, a=Hearing(), stop=TrainLossStop(), b=Hearing()
    )
    assert 1 < len(means) < n_epochs
    assert means[-1] < 1e-2 <= min(means[:-1])
    assert heard == [epoch for epoch in range(len(means)) for _ in range(2)]


def test_dp_value_policy_kwarg() -> None:
    model = Fake()
    weights = Exponential(initial=10, multiplier=0.5)
    train_model(model, batches(3), n_epochs=3, lr=0.1, weights=weights)
    expected = EXAMPLES["dp-value-policy-kwarg"]["expected"]
    assert [given["weights"] for given in model.given] == pytest.approx(expected)
    assert {given["lr"] for given in model.given} == {0.1}


def test_dp_load_by_random_id() -> None:
    example = EXAMPLES["dp-load_by_random_id"]
    uniform = load_by_random_id(str, ids="abcde", random_state=42)
    weights = example["input"]["weighted"]["weights"]
    weighted = load_by_random_id(str, ids="abc", weights=weights, random_state=1)
    for source, expected in ((uniform, "uniform"), (weighted, "weighted")):
        drawn = [item for item, _ in zip(source, example["expected"][expected], strict=False)]
        assert drawn == example["expected"][expected]
    many = [item for item, _ in zip(weighted, range(2000), strict=False)]
    assert set(many) == {"a", "c"}
    assert many.count("c") / 2000 == pytest.approx(0.75, abs=0.05)
    later = [item for item, _ in zip(weighted.skipping(990), range(9), strict=False)]
    assert later == many[990:999]


def test_dp_infinite() -> None:
    example = EXAMPLES["dp-infinite"]["expected"]
    source = load_by_random_id(float, lambda i: i % 2, ids=range(10), random_state=0)
    with Infinite(source, batch_size=4, n_iters_per_epoch=3) as batch_iter:
        epochs = [list(batch_iter) for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == example["batches_in_epoch"]
    all_batches = [batch for epoch in epochs for batch in epoch]
    for batch in all_batches:
        assert len(batch) == example["arrays_per_batch"]
        assert {len(array) for array in batch} == {example["batch_len"]}
        assert np.array_equal(batch[0] % 2, batch[1])
    taken = np.concatenate([batch[0] for batch in all_batches]).tolist()
    assert taken == [x for (x, _), _ in zip(source, range(24), strict=False)]
    with pytest.raises(ValueError, match="at least 1, not 0 and 4"):
        Infinite(source, batch_size=4, n_iters_per_epoch=0)


def test_dp_logged_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES["dp-logged-items"]
    train_model(
        Fake([10.0, 10.0, 2.5, 2.5]),
        batches(2),
        n_epochs=example["input"]["n_epochs"],
        lr=Exponential(0.1, 0.5),
        log_path=tmp_path,
        validate=lambda: example["input"]["validate"],
        console=ConsoleLogger(),
    )
    assert capsys.readouterr().out.splitlines() == example["expected"]["console"]
    (path,) = tmp_path.iterdir()
    scalars = list(read_scalars(path))
    assert [tag for step, tag, _ in scalars if step == 0] == example["expected"]["tensorboard_tags"]
    assert sorted({step for step, *_ in scalars}) == example["expected"]["steps"]
    assert [value for _, tag, value in scalars if tag == "train/loss"] == [10.0, 2.5]


@pytest.mark.parametrize(
    ("loss", "tags"),
    [
        ({"a": 1.0, "b": 2.0}, {"train/loss/a": 1.0, "train/loss/b": 2.0}),
        (np.array([3.0, 4.0]), {"train/loss/0": 3.0, "train/loss/1": 4.0}),
    ],
)
def test_several_losses_are_logged_apart(loss: Any, tags: Any, tmp_path: Path) -> None:
    train_model(Fake([loss] * 2), batches(2), n_epochs=1, lr=1, log_path=tmp_path)
    (path,) = tmp_path.iterdir()
    assert {tag: value for _, tag, value in read_scalars(path)} == {**tags, "policies/lr": 1.0}


def test_every_example_has_a_test_of_its_name() -> None:
    named = {f"test_{example.replace('-', '_')}" for example in EXAMPLES}
    assert len(named) == 7 and named <= set(globals())
