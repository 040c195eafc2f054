"""A collection with registered components, and one fit after the other as a worker would run it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pymongo.database import Database

from superduper import commands
from superduper.command import build
from superduper.fields import codec
from superduper.fields.sealing import seal
from superduper.handlers.pins import pins_of
from superduper.imputations.declare import record_of
from superduper.imputations.fitting.folds import fold_of_id
from superduper.imputations.fitting.job import FitContext, fit
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.jobs.queue import Queue, RunningJob
from superduper.store.artifacts import ArtifactStore
from superduper.store.component import Component
from superduper.store.registry import Registry
from superduper.store.signing import Keyring


class Classifier(torch.nn.Module):
    """A linear model on two numbers, or more; classes are named."""

    def __init__(self, labels: Sequence[str] = ("low", "high"), inputs: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.labels = list(labels)
        self.layer = torch.nn.Linear(inputs, len(self.labels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]

    def postprocess(self, row: torch.Tensor) -> str:
        return self.labels[int(row.argmax())]


class Labels:
    """A target: a label's number."""

    def __init__(self, labels: Sequence[str] = ("low", "high")) -> None:
        self.numbers = {label: number for number, label in enumerate(labels)}

    def __call__(self, label: str) -> torch.Tensor:
        return torch.tensor(self.numbers[label])


def equal(answer: Any, value: Any) -> bool:
    """A metric."""
    return bool(answer == value)


class Fitting:
    """The parts of a worker, on one database."""

    collection = "docs"

    def __init__(self, database: Database[Any]) -> None:
        self.database = database
        self.docs = database[self.collection]
        artifacts = ArtifactStore(database, Keyring.open())
        self.registry = Registry(database, artifacts)
        self.imputations = Imputations(database)
        self.work = FitContext(database, self.registry, artifacts, self.imputations)
        self.queue = Queue(database, lease_seconds=30)

    def register(self, kind: str, name: str, value: Any, **parts: Any) -> Component:
        """Register a component without trying it out."""
        sealed = seal({"object": value, **parts})
        return self.registry.register(
            self.collection, kind, name, sealed, author="test", details={}
        )

    def register_all(
        self, model: Any = None, target: Any = None, loss: Any = None, metric: Any = equal
    ) -> None:
        """Register `model`, `target`, `loss` and `accuracy`."""
        self.register("model", "model", model or Classifier())
        self.register("function", "target", target or Labels())
        self.register("loss", "loss", loss or torch.nn.CrossEntropyLoss())
        self.register("metric", "accuracy", metric)

    def declare(self, **settings: Any) -> ImputationRecord:
        """Declare an imputation of `y` from `x`."""
        chosen = {
            "model": "model",
            "model_key": "x",
            "target": "target",
            "target_key": "y",
            "loss": "loss",
            "metrics": ("accuracy",),
            "lr": 0.05,
            "batch_size": 16,
            "max_epochs": 20,
            "seed": 1,
            **settings,
        }
        command = build(commands.CreateImputation, collection=self.collection, **chosen)
        pins = pins_of(self.registry, command)
        return self.imputations.create(record_of(command, pins, now=1, author="test"))

    def claim(self, record: ImputationRecord) -> RunningJob:
        """A job for the imputation's fit, as a worker has it."""
        self.queue.put("fit", {"collection": record.collection, "imputation": record.name})
        job = self.queue.claim("test", ["fit"])
        assert job is not None
        return job

    def fit(self, record: ImputationRecord) -> dict[str, Any]:
        """Run a fit; its run with its history, and with the fit's answer as `answer`."""
        job = self.claim(record)
        try:
            answer = fit(job, self.work)
        except BaseException as error:
            job.fail(error, retry=False)
            raise
        job.succeed(answer)
        return {**self.work.runs.get(answer["run"]), "answer": answer}

    def run_of(self, record: ImputationRecord) -> Mapping[str, Any]:
        """The newest run of an imputation."""
        found = self.work.runs.of_imputation(record.id, 1)
        return found[0]

    def insert(self, values: Mapping[Any, tuple[Any, Any]], **fields: Any) -> None:
        """Insert documents by `_id`: the values of `x` and `y`, encoded as a user's are."""
        self.docs.insert_many(
            {"_id": document_id, **codec.encode_document({"x": x, "y": y}), **fields}
            for document_id, (x, y) in values.items()
        )


def points(n: int, first: int = 0, seed: int = 0) -> dict[int, tuple[Any, Any]]:
    """Points in the plane and the side of a line they are on."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return {
        first + number: (point, "high" if float(point.sum()) > 0 else "low")
        for number, point in enumerate(x)
    }


def ids_of(fold: str, count: int) -> list[int]:
    """The first numbers that fall into a fold."""
    return [number for number in range(100 * count) if fold_of_id(number) == fold][:count]
