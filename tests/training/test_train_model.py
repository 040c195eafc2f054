"""`train_model` as its guide has it, what policies hear, and what is refused."""

import csv
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from first_door import Plain, data, model_of, network, stream
from sklearn.datasets import load_digits

import superduper.training
from superduper.training import (
    TQDM,
    BestWeights,
    ConsoleLogger,
    Constant,
    CSVLogger,
    EarlyStopping,
    Exponential,
    JSONLogger,
    LossStop,
    NEpochs,
    Patience,
    Policy,
    Schedule,
    TargetStop,
    TensorBoardLogger,
    TimeProfiler,
    TimeStop,
    TorchModel,
    train_model,
)

# The code of the seed text, with other imports and fewer iterations.
SEED = """
    from superduper.training import train_model
    from superduper.training import TorchModel
    from superduper.training import layers
    import torch
    from torch import nn

    architecture = nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(64, 128, kernel_size=3),

        layers.PyramidPooling(nn.functional.max_pool2d), # global pooling
        nn.ReLU(),
        nn.Linear(128, 10),
    )

    model = TorchModel(architecture, nn.Softmax(-1), nn.CrossEntropyLoss(), torch.optim.Adam)

    from superduper.training import Infinite
    from superduper.training import load_by_random_id

    dataset = MNIST('PATH TO DATA')

    batch_iter = Infinite(
        load_by_random_id(dataset.load_image, dataset.load_label, ids=dataset.ids),
        batch_size=100, n_iters_per_epoch=2,
    )

    train_model(model, batch_iter, n_epochs=2, lr=1e-3)

    train_model(model, batch_iter, n_epochs=2, lr=1e-3,
                log_path='~/my_new_model/logs', checkpoints_path='~/my_new_model/checkpoints')

    # start from where you left off
    train_model(model, batch_iter, n_epochs=2, lr=1e-3,
                log_path='~/my_new_model/logs', checkpoints_path='~/my_new_model/checkpoints')

    from typing import Sequence
    import numpy as np
    from superduper.training import EarlyStopping, Policy

    class TrainLossStop(Policy):
        def epoch_finished(self, epoch: int, *, train_losses: Sequence, metrics: dict = None):
            if np.mean(train_losses) < 1e-5:
                raise EarlyStopping

    train_model(model, batch_iter, n_epochs=1, lr=1e-3, stop=TrainLossStop())

    from superduper.training import Exponential


    class WeightedModel(TorchModel):
        def do_train_step(self, *inputs, lr, weights):
            print('I received these weights:', weights)
            # do something with the weights ...
            # perform a train step ...
            loss = super().do_train_step(*inputs, lr=lr)
            return loss


    model = WeightedModel(architecture, nn.Softmax(-1), nn.CrossEntropyLoss(), torch.optim.Adam)

    train_model(model, batch_iter, n_epochs=3, lr=1e-3,
                weights=Exponential(initial=10, multiplier=0.5))

    def validate():
        return {
            'acuracy': 0.95,
            'roc_auc': 0.91,
        }

    train_model(model, batch_iter, n_epochs=1, lr=1e-3, weights=1, validate=validate)
"""


class Digits:
    """Images of digits, in place of those that would have to be fetched."""

    def __init__(self, path: str) -> None:
        self.images, self.labels = load_digits(return_X_y=True)
        self.ids = range(len(self.labels))

    def load_image(self, number: int) -> Any:
        return self.images[number].reshape(1, 8, 8) / 16

    def load_label(self, number: int) -> Any:
        return self.labels[number]


def test_the_seed_text_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    exec(textwrap.dedent(SEED), {"MNIST": Digits})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        f"I received these weights: {each}" for each in (10.0, 5.0, 2.5) for _ in range(2)
    ]
    assert len(list((tmp_path / "my_new_model" / "checkpoints").iterdir())) == 2
    assert len(list((tmp_path / "my_new_model" / "logs").iterdir())) == 1


def test_it_learns_and_predicts() -> None:
    x, y = data()
    model = TorchModel(
        network(), torch.nn.Softmax(-1), torch.nn.CrossEntropyLoss(), torch.optim.Adam
    )
    train_model(model, stream(), n_epochs=15, lr=0.02)
    predicted = model.do_inf_step(x)
    assert isinstance(predicted, np.ndarray)
    assert predicted.sum(1) == pytest.approx(np.ones(len(x)))
    assert (predicted.argmax(1) == y).mean() > 0.9


def test_policies_hear_everything_in_order_and_take_what_they_name() -> None:
    heard: list[Any] = []

    class Hearing(Policy):
        def run_started(self) -> None:
            heard.append("run_started")

        def epoch_started(self, epoch: int) -> None:
            heard.append(("epoch_started", epoch))

        def train_step_started(self, epoch: int, iteration: int) -> None:
            heard.append(("train_step_started", epoch, iteration))

        def train_step_finished(self, epoch: int, iteration: int, loss: float) -> None:
            heard.append(("train_step_finished", epoch, iteration, loss))

        def validation_started(self, epoch: int, train_losses: Sequence[float]) -> None:
            heard.append(("validation_started", epoch, train_losses))

        def epoch_finished(self, epoch: int, **arguments: Any) -> None:
            kept = {name: arguments[name] for name in ("train_losses", "metrics", "policies")}
            heard.append(("epoch_finished", epoch, kept))

        def run_finished(self, reason: str) -> None:
            heard.append(reason)

    batches = [(np.zeros(2), np.zeros(2))] * 2
    train_model(Plain(), batches, 1, lr=0.5, hearing=Hearing(), validate=lambda: {"a": 2})
    steps = [
        (f"train_step_{event}", 0, number, *loss)
        for number in range(2)
        for event, loss in (("started", ()), ("finished", (1.0,)))
    ]
    ended = {"train_losses": [1.0, 1.0], "metrics": {"a": 2}, "policies": {"lr": 0.5}}
    assert heard == [
        "run_started",
        ("epoch_started", 0),
        *steps,
        ("validation_started", 0, [1.0, 1.0]),
        ("epoch_finished", 0, ended),
        "all epochs are done",
    ]


def test_a_policy_of_the_engine_can_be_used() -> None:
    model, accuracies = model_of(), iter([0.1, 0.9, 0.3])
    best = BestWeights("accuracy", higher_is_better=True)
    train_model(
        model, stream(), 3, lr=0.1, best=best, validate=lambda: {"accuracy": next(accuracies)}
    )
    assert best.best is not None and best.best["epoch"] == 1
    (weights,) = best.weights.values()
    model.architecture.load_state_dict(weights)


def test_it_ends_after_epochs_time_or_at_a_target() -> None:
    batches = [(np.zeros(2), np.zeros(2))] * 4
    time = iter(range(100))
    found = iter([0.5, 0.7, 0.91, 0.95])
    for stop, validate, steps in (
        (NEpochs(2), None, 8),
        (TimeStop(5, clock=lambda: float(next(time))), None, 5),
        (TargetStop("accuracy", 0.9), lambda: {"accuracy": next(found)}, 12),
    ):
        model = Plain()
        train_model(model, batches, None, lr=1, stop=stop, validate=validate)
        assert len(model.given) == steps


def test_plain_values_are_constants_and_not_all_epochs_are_needed() -> None:
    model = Plain()
    train_model(model, [(np.zeros(1),)], n_epochs=0, lr=1)
    assert model.given == []
    train_model(model, [(np.zeros(1),)], 1, 0.5, mode="text", momentum=Constant(0.9))
    assert model.given == [{"lr": 0.5, "mode": "text", "momentum": 0.9}]


def test_rows_are_written_as_csv_and_json_and_dropped_when_they_come_again(tmp_path: Path) -> None:
    table, lines = tmp_path / "a" / "log.csv", tmp_path / "log.jsonl"

    class Breaking(Policy):
        def epoch_finished(self, epoch: int) -> None:
            if epoch == 1 and not lines.with_suffix(".broken").exists():
                lines.with_suffix(".broken").touch()
                raise ZeroDivisionError

    def train() -> None:
        metrics = iter([{}, {"late": 3.0}, {}])
        train_model(
            model_of(),
            stream(),
            n_epochs=3,
            lr=Exponential(1, 0.5),
            checkpoints_path=tmp_path / "checkpoints",
            validate=lambda: next(metrics),
            table=CSVLogger(table),
            lines=JSONLogger(lines),
            breaking=Breaking(),
        )

    with pytest.raises(ZeroDivisionError):
        train()
    assert len(lines.read_text().splitlines()) == 2
    train()
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [row["policies/lr"] for row in rows] == ["1.0", "0.5", "0.25"]
    assert [row["val/metrics/late"] for row in rows] == ["", "", "3.0"]
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["epoch"] for row in written] == [0, 1, 2]
    assert written[2]["train/loss"] == pytest.approx(float(rows[2]["train/loss"]))


def test_a_bar_and_a_profile_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter(range(100))
    profiler = TimeProfiler(clock=lambda: float(next(ticks)))
    batches = [(np.zeros(2), np.zeros(2))] * 2
    train_model(Plain(), batches, 1, lr=1, bar=TQDM(), profiler=profiler)
    shown = capsys.readouterr()
    assert shown.out.startswith("Epoch 0: 5.000 s; batches 2.000 s, steps 2.000 s, validation 1.0")
    # No terminal, no bar: a line for each epoch.
    assert re.fullmatch(r"Epoch 0: 2 steps in \d+\.\d s, loss: 1\n", shown.err)


def test_a_bar_that_shows_no_loss_and_an_epoch_that_was_not_begun(
    capsys: pytest.CaptureFixture[str],
) -> None:
    batches = [(np.zeros(2), np.zeros(2))] * 2
    train_model(Plain(), batches, None, lr=1, bar=TQDM(loss=False), stop=NEpochs(2))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["Epoch 0: 2 steps", "Epoch 1: 2 steps"]
    assert "loss" not in lines[0]


def test_every_policy_of_the_guide_goes_with_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is no value must not be taken for one that each step is given."""
    policies: list[Policy] = [
        *(LossStop(), NEpochs(9), TimeStop(900), TargetStop("accuracy", 0.9)),
        *(Patience("accuracy", True, 5), BestWeights("accuracy", True)),
        *(TQDM(), TimeProfiler(), ConsoleLogger(), TensorBoardLogger(tmp_path / "events")),
        *(CSVLogger(tmp_path / "log.csv"), JSONLogger(tmp_path / "log.jsonl")),
    ]
    found = iter([0.5, 0.95])
    named = {f"p{number}": policy for number, policy in enumerate(policies)}
    train_model(
        model_of(), stream(), 9, lr=0.1, validate=lambda: {"accuracy": next(found)}, **named
    )
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2  # the target was reached
    assert "Metrics: accuracy: 0.95" in capsys.readouterr().out


def test_objects_say_what_they_are() -> None:
    train_model(Plain(), stream(), 3, lr=(lr := Exponential(1, 0.5)), stop=(stop := LossStop()))
    assert repr(lr).startswith("Exponential(value=0.25, initial=1.0, multiplier=0.5")
    assert repr(stop) == "LossStop(max_ratio=3, lowest=1.0)"
    assert repr(Schedule(1, {2: 0.1})).endswith("epoch2value_multiplier={2: 0.1})")
    assert repr(model_of(device="cpu")) == "TorchModel(Sequential with 58 weights, SGD, on cpu)"
    batches = stream(seed=5)
    assert repr(batches).startswith("Infinite(load_by_random_id(60 ids, random_state=5), batch_si")


def test_stopping_within_an_epoch_and_before_one() -> None:
    class Stopping(Policy):
        def train_step_finished(self, iteration: int) -> None:
            if iteration == 2:
                raise EarlyStopping

        def epoch_finished(self, train_losses: Sequence[float]) -> None:
            seen.append(len(train_losses))

    class Never(Policy):
        def epoch_started(self) -> None:
            raise EarlyStopping("no need")

    seen: list[int] = []
    train_model(Plain(), stream(), 5, lr=1, stop=Stopping())
    assert seen == [3]
    model = Plain()
    train_model(model, stream(), 5, lr=1, never=Never())
    assert model.given == []


def test_the_guide_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    guide = Path(__file__).parents[2] / "docs" / "train_model.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 4


def test_the_policies_of_the_guide_are_there() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "train_model.md").read_text(encoding="utf-8")
    table = guide.split("| policy | what it does |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([A-Z]\w+)\(", table))
    assert len(named) >= 16
    for name in named:
        assert issubclass(getattr(superduper.training, name), Policy), name
