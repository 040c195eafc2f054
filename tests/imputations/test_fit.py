"""Fits on a real store with real children: what is learned from, what comes of it, what fails."""

import threading
from typing import Any

import pytest
import torch
from safetensors.torch import load

from superduper.command import build
from superduper.commands import CreateImputation
from superduper.errors import InvalidInput, UserCodeError
from superduper.fields import codec
from superduper.imputations.declare import record_of
from superduper.imputations.fitting.folds import FIELD, FOLDS, fold_of, fold_of_id
from superduper.imputations.fitting.job import adopt, fit
from superduper.imputations.provenance import value_hash
from superduper.jobs.queue import Cancelled
from superduper.training.runs import Runs
from tests.imputations.fitting import Classifier, Fitting, Labels, equal, points
from tests.waiting import until


def test_digits_are_learned_and_the_best_version_goes_live(fitting: Fitting) -> None:
    from sklearn.datasets import load_digits

    class Digits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Flatten(),
                torch.nn.Linear(64, 32),
                torch.nn.ReLU(),
                torch.nn.Linear(32, 10),
            )

        def preprocess(self, image: torch.Tensor) -> torch.Tensor:
            return image / 16

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images)  # type: ignore[no-any-return]

        def postprocess(self, row: torch.Tensor) -> str:
            return f"digit {int(row.argmax())}"

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)
    fitting.insert({i: (images[i], f"digit {digits.target[i]}") for i in range(600)})
    fitting.register_all(Digits(), Labels([f"digit {i}" for i in range(10)]))
    record = fitting.declare(watch="accuracy", lr=0.01, batch_size=64, max_epochs=25)
    run = fitting.fit(record)

    assert run["status"] == "succeeded"
    assert run["best"]["accuracy"] > 0.9
    assert run["metrics"]["accuracy"] > 0.85
    assert run["scored"]["fold"] == "test" and run["scored"]["n"] == run["data"]["test"]["n"] > 30
    assert sum(fold["n"] for fold in run["data"].values()) == 600
    assert [row["epoch"] for row in run["history"]] == list(range(len(run["history"])))
    assert run["best"]["accuracy"] == max(row["accuracy"] for row in run["history"])
    assert run["initial_hash"] != run["final_hash"]
    assert run["seed"] == 1 and run["device"] and run["versions"]["torch"] == torch.__version__
    assert (run["promoted"], run["reason"]) == (True, "the first version")

    live = fitting.imputations.get("docs", record.name)
    assert (live.active, live.active_component) == (1, ("model", 2))
    component = fitting.registry.get("docs", "model", "model")
    assert component.version == 2
    assert component.origin == {"imputation": record.name, "version": 1, "run": run["_id"]}
    weights = load(fitting.registry.payload(component)["weights"]["blob"])
    assert weights["layers.1.weight"].shape == (32, 64)
    assert fitting.work.runs.highscores("docs", "accuracy")[0]["run"] == run["_id"]


def test_the_same_seed_trains_the_same_weights(fitting: Fitting) -> None:
    fitting.insert(points(80))
    fitting.register_all()
    record = fitting.declare(max_epochs=3)
    runs = [fitting.fit(record) for _ in range(2)]
    assert runs[0]["final_hash"] == runs[1]["final_hash"]
    assert runs[0]["data"] == runs[1]["data"]


def test_a_fit_computes_in_16_bits_where_it_is_told_to(fitting: Fitting) -> None:
    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Validation is in 32 bits, as filling will be.
        wanted = torch.bfloat16 if torch.is_grad_enabled() else torch.float32
        assert output.dtype == wanted, output.dtype
        return torch.nn.functional.cross_entropy(output, y)

    fitting.insert(points(80))
    fitting.register_all(loss=loss)
    run = fitting.fit(fitting.declare(mixed_precision="bf16", watch="accuracy"))
    assert run["settings"]["mixed_precision"] == "bf16"
    assert run["best"]["accuracy"] > 0.9


def test_numbers_are_learned_without_a_target(fitting: Fitting) -> None:
    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

        def postprocess(self, row: torch.Tensor) -> float:
            return float(row)

    def error(answer: float, value: float) -> float:
        return abs(answer - value)

    error.higher_is_better = False  # type: ignore[attr-defined]
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    y = [2 * float(row[0]) - float(row[1]) + 3 for row in x]
    # Some whole numbers among them, as users have them.
    fitting.insert(
        {i: (x[i].tolist(), int(y[i]) if y[i] == int(y[i]) else y[i]) for i in range(200)}
    )
    fitting.insert({1000: ([0, 0], 3), 1001: ([1, 1], 4)})
    fitting.register_all(Line(), loss=torch.nn.MSELoss(), metric=error)
    record = fitting.declare(target=None, watch="accuracy", max_epochs=60, lr=0.05)
    run = fitting.fit(record)
    assert run["higher_is_better"] == {"loss": False, "accuracy": False}
    assert run["best"]["accuracy"] < 0.1


def test_a_target_may_be_another_model(fitting: Fitting) -> None:
    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 3)

        def preprocess(self, value: torch.Tensor) -> torch.Tensor:
            return value * 2

        def forward(self, y: torch.Tensor) -> torch.Tensor:
            return self.layer(y)  # type: ignore[no-any-return]

    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    fitting.insert({i: (x[i], x[i] + 1) for i in range(60)})
    fitting.register_all(torch.nn.Linear(2, 3), loss=torch.nn.MSELoss())
    fitting.register("model", "teacher", Teacher())
    record = fitting.declare(target="teacher", metrics=(), max_epochs=60)
    run = fitting.fit(record)
    assert run["best"]["loss"] < run["history"][0]["loss"] / 20


def test_a_loss_that_is_no_number_names_the_documents(fitting: Fitting) -> None:
    fitting.insert(points(20), _fold="train")
    fitting.insert({77: (torch.tensor([float("nan"), 0.0]), "low")}, _fold="train")
    fitting.register_all()
    with pytest.raises(UserCodeError, match=r"became nan at step \d+ .*documents .*\b77\b"):
        fitting.fit(fitting.declare())


class OnlyFirst(Classifier):
    """Answers for the first record of a batch only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:1]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"metric": lambda answer, value: 1 / 0},
            "metric 'accuracy' raised ZeroDivisionError.*doc",
        ),
        ({"model": equal}, "is no torch.nn.Module and cannot be trained"),
        ({"model": torch.nn.ReLU()}, "no parameters to train"),
        ({"loss": lambda output, y: 3.0}, "loss 'loss' returned a float"),
        ({"model": Classifier(inputs=3)}, "shapes cannot be multiplied"),
        ({"model": OnlyFirst()}, r"the model returned 1 rows for \d+ inputs"),
    ],
)
def test_broken_components(fitting: Fitting, broken: dict[str, Any], message: str) -> None:
    fitting.insert(points(30))
    fitting.register_all(**broken)
    record = fitting.declare()
    with pytest.raises((UserCodeError, InvalidInput), match=message):
        fitting.fit(record)
    assert fitting.run_of(record)["status"] == "failed"


def test_a_metric_with_state_gets_batches(fitting: Fitting) -> None:
    class Share:
        """As torchmetrics' are."""

        def reset(self) -> None:
            self.right = self.n = 0

        def update(self, output: torch.Tensor, y: torch.Tensor) -> None:
            self.right += int((output.argmax(1) == y).sum())
            self.n += len(y)

        def compute(self) -> torch.Tensor:
            return torch.tensor(self.right / self.n)

    fitting.insert(points(150))
    fitting.register_all(metric=Share())
    fitting.register("metric", "plain", equal)
    run = fitting.fit(fitting.declare(metrics=("accuracy", "plain"), max_epochs=3))
    for row in run["history"]:
        assert row["accuracy"] == pytest.approx(row["plain"])


def test_torchmetrics_are_right_on_a_last_batch_of_another_size(fitting: Fitting) -> None:
    """Macro F1 over all documents is no mean of the batches' own, whatever their weights."""
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    fitting.insert(points(40), _fold="train")
    fitting.insert(points(31, 100, seed=1), _fold="valid")
    fitting.register_all(metric=MulticlassAccuracy(2, average="micro"))
    fitting.register("metric", "f1", MulticlassF1Score(2))
    fitting.register("metric", "plain", equal)
    rows = {}
    for size in (7, 31):
        name = f"of_{size}"
        fitting.register("model", name, Classifier())
        given = {"metrics": ("accuracy", "f1", "plain"), "batch_size": size, "max_epochs": 2}
        run = fitting.fit(fitting.declare(name=name, model=name, watch="f1", fill=False, **given))
        assert all(row["accuracy"] == pytest.approx(row["plain"]) for row in run["history"])
        assert run["higher_is_better"]["f1"] is True
        rows[size] = run["history"][0]  # before the first step
    assert 0 < rows[31]["f1"] < 1 and rows[31]["f1"] != pytest.approx(rows[31]["accuracy"])
    for name, value in rows[31].items():
        assert rows[7][name] == pytest.approx(value, abs=1e-6), name


def test_a_cancelled_fit_ends_soon_and_changes_nothing(fitting: Fitting) -> None:
    fitting.insert(points(50))
    fitting.register_all()
    record = fitting.declare(max_epochs=1_000_000, patience=1_000_000)
    job = fitting.claim(record)

    def cancel() -> None:
        until(lambda: fitting.queue.get(job.id)["progress"].get("phase") == "training")
        fitting.queue.cancel(job.id)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        fit(job, fitting.work)
    job.end_cancelled()
    thread.join()
    assert fitting.run_of(record)["status"] == "cancelled"
    assert fitting.imputations.get("docs", record.name).active is None


def test_progress_can_be_read_while_it_trains(fitting: Fitting) -> None:
    fitting.insert(points(50))
    fitting.register_all()
    record = fitting.declare(max_epochs=400, patience=400)
    job = fitting.claim(record)
    run = fit(job, fitting.work)
    job.succeed(run)
    progress = fitting.queue.get(job.id)["progress"]
    assert progress["done"] == progress["total"] == 400 * 3
    assert set(progress["metrics"]) == {"train_loss", "loss", "accuracy"}
    assert len(fitting.work.runs.get(run["run"])["history"]) == 401


def test_a_fit_that_is_tried_again_repeats_itself(fitting: Fitting) -> None:
    fitting.insert(points(40))
    fitting.register_all()
    record = fitting.declare(seed=None, max_epochs=2)
    job = fitting.claim(record)
    left = fitting.work.runs.begin(
        {"collection": "docs", "imputation": record.id, "job": job.id, "seed": 4711}
    )
    run = fitting.work.runs.get(fit(job, fitting.work)["run"])
    job.succeed({})
    assert (run["seed"], run["parent"]) == (4711, left)
    assert fitting.work.runs.get(left)["status"] == "failed"


def test_a_model_without_a_loss_is_live_as_it_is(fitting: Fitting) -> None:
    fitting.register_all()
    record = fitting.declare(loss=None, metrics=())
    runs = Runs(fitting.database)
    assert adopt(fitting.imputations, runs, record, by="me") == 1
    live = fitting.imputations.get("docs", record.name)
    assert (live.active, live.active_component) == (1, ("model", 1))
    assert [(run["version"], run["status"]) for run in runs.of_imputation(record.id)] == [
        (1, "succeeded")
    ]
    with pytest.raises(InvalidInput, match="nothing to train"):
        fitting.fit(record)


def test_several_fields_are_one_value_by_path(fitting: Fitting) -> None:
    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def preprocess(self, value: dict[str, float]) -> torch.Tensor:
            return torch.tensor([value["a"], value["deep.b"]])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

    fitting.docs.insert_many(
        {"_id": i, "a": i / 30, "deep": {"b": -i / 60, "other": "z"}, "y": i / 60}
        for i in range(60)
    )
    fitting.register_all(Sum(), loss=torch.nn.MSELoss())
    record = fitting.declare(
        model_key=["a", "deep.b"], target=None, metrics=(), max_epochs=60, name="sum"
    )
    run = fitting.fit(record)
    assert run["skipped"]["count"] == 0
    assert run["best"]["loss"] < 0.01


def test_the_hash_of_a_value_depends_on_its_type() -> None:
    assert value_hash(1) != value_hash(1.0) != value_hash("1")
    assert value_hash(codec.encode({"a": [1]})) == value_hash({"a": [1]})
    assert len(value_hash(None)) == 16


def test_sd_output_paths() -> None:
    """The example of that name: where outputs and folds stand. The share of `valid` is ours."""
    names = {"model": "my_model", "model_key": "x", "target_key": "y"}
    command = build(CreateImputation, collection="docs", **names, fill=False)
    record = record_of(command, {}, now=1, author="test")
    assert record.write_paths == ("_outputs.x.my_model",)
    assert FIELD == "_fold" and {"train", "valid"} <= set(FOLDS)
    assert fold_of({"_id": 1, "_fold": "valid"}) == "valid"
    shares = [fold_of_id(number) for number in range(4000)]
    assert shares.count("valid") / 4000 == pytest.approx(0.1, abs=0.02)
