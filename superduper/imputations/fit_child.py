"""The child of a fit: it alone loads user code, makes records of documents, and trains.

The parent sends `load`, then `documents` in batches, then `seal`, `train`, and perhaps `compare`.
The child has no access to the database; weights go back as a file in the fit's own folder.
"""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bson
import numpy
import torch
from bson.codec_options import CodecOptions, DatetimeConversion

from superduper.errors import InvalidInput
from superduper.imputations.fit_measures import Answers, FittedLoss, apply, metrics_of
from superduper.imputations.fit_records import (
    Fields,
    RecordMaker,
    Target,
    function_target,
    model_target,
    raw_target,
)
from superduper.imputations.folds import Fold as FoldName
from superduper.jobs.channel import Channel, Message, serve
from superduper.serving import collate
from superduper.serving.predictor import Predictor
from superduper.store.unsealing import load
from superduper.training.cache import Fold
from superduper.training.engine import Engine, Plan, Stage, evaluate
from superduper.training.graph import Frame, Graph, Node
from superduper.training.objective import Objective, StepResult, Term
from superduper.training.optimizers import optimizer_of
from superduper.training.policies import BestWeights, NaNStop, Patience, Policy, check_watched
from superduper.training.precision import MixedPrecision, default_device
from superduper.training.randomness import seed_everything
from superduper.training.sources import IndexSource
from superduper.training.weights import copy_of_state, weights_blob, weights_hash

REPORT_SECONDS = 0.2
_SHOWN_IDS = 20

# As documents are read to be filled: odd text and dates are data too, and no reason to die.
_DECODING: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)


def main(channel: Channel) -> None:
    """Serve one fit."""
    fitting = Fitting(channel.send)
    serve(
        channel,
        {
            "load": fitting.load,
            "documents": fitting.documents,
            "seal": fitting.seal,
            "train": fitting.train,
            "compare": fitting.compare,
        },
    )


@dataclass(frozen=True)
class Settings:
    """The part of an imputation's specification that training needs."""

    optimizer: Any
    lr: float
    batch_size: int
    max_epochs: int
    max_steps: int | None
    patience: int
    watch: str
    mixed_precision: str | None
    seed: int


class Reporter(Policy):
    """Tells the parent how far it is: a few times a second, and after every validation."""

    def __init__(self, send: Callable[[Message], None], total: int) -> None:
        self.send = send
        self.total = total
        self._last = 0.0

    def step_finished(self, epoch: int, step: int, result: StepResult) -> None:
        """Report, unless it was done a moment ago."""
        now = time.monotonic()
        if now - self._last < REPORT_SECONDS:
            return
        self._last = now
        losses = {name: float(loss) for name, loss in result.losses.items()}
        self.send({"event": {"step": {"epoch": epoch, "step": step, "of": self.total, **losses}}})

    def validation_finished(
        self, epoch: int, step: int, train: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Report the row of an epoch."""
        losses = {f"train_{name}": value for name, value in train.items()}
        row = {"epoch": epoch, "step": step, **losses, **metrics}
        self.send({"event": {"row": row, "of": self.total}})


class Fitting:
    """The state of one fit between the parent's messages."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self.send = send
        self.device = default_device()

    # Loading ---------------------------------------------------------------------------------

    def load(self, message: Message) -> Message:
        """Load the components and get ready for documents."""
        torch.set_num_threads(1)
        self.settings = Settings(**message["settings"])
        self.folder = Path(message["folder"])
        self.fields = Fields(*(tuple(message["fields"][key]) for key in Fields.__annotations__))
        seed_everything(self.settings.seed)
        self.predictor = self._trainable(message["model"], str(self.device))
        self.loss = self._placed(load(message["loss"])["object"])
        self.metrics = {
            name: self._placed(load(each)["object"]) for name, each in message["metrics"].items()
        }
        target = self._target(message.get("target"))
        self.records = RecordMaker(self.predictor, target, self.fields, self.folder)
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        return {
            "device": _device_name(self.device),
            "versions": {**versions, "numpy": numpy.__version__},
        }

    def _trainable(self, payload: Mapping[str, Any], device: str) -> Predictor:
        parts = load(dict(payload))
        model = parts["object"]
        if not isinstance(model, torch.nn.Module):
            raise InvalidInput(
                f"a {type(model).__name__} is no torch.nn.Module and cannot be trained with a "
                "loss: leave out `loss` to use it as it is"
            )
        return Predictor(model, parts.get("preprocess"), parts.get("postprocess"), device)

    def _placed(self, part: Any) -> Any:
        """A loss or metric, on the device where it has weights or state of its own."""
        return part.to(self.device) if isinstance(part, torch.nn.Module) else part

    def _target(self, payload: Mapping[str, Any] | None) -> Target:
        if payload is None:
            return raw_target
        parts = load(dict(payload["payload"]))
        if payload["kind"] == "function":
            return function_target(parts["object"])
        return model_target(Predictor(parts["object"], parts.get("preprocess")))

    # Documents -------------------------------------------------------------------------------

    def documents(self, message: Message) -> Message:
        """Take a batch of documents with their folds."""
        documents = [bson.decode(raw, _DECODING) for raw in message["documents"]]
        self.records.take(documents, message["folds"])
        return {"made": self.records.made, "skipped": self.records.skipped.count}

    def seal(self, message: Message) -> Message:
        """No more documents come: the hashes of the data, and what was skipped."""
        self.records.seal()
        self._materialise()
        skipped = self.records.skipped
        return {
            "initial_hash": weights_hash(self.predictor.model.state_dict()),
            "data": {
                name: {"n": fold.n, "hash": fold.hash} for name, fold in self.records.folds.items()
            },
            "validated_on": self._validation_name,
            "skipped": {"count": skipped.count, "first": skipped.first},
        }

    def _materialise(self) -> None:
        """Let lazy layers learn their sizes from one record."""
        model = self.predictor.model
        if any(torch.nn.parameter.is_lazy(weight) for weight in model.parameters()):
            fold = self.records.folds["train"]
            source = self._source(fold, collate.floating_dtype(model), None)
            with torch.no_grad():
                apply(model.eval(), next(source.batches(0)).frame["x"])

    @property
    def _validation_name(self) -> FoldName:
        return "valid" if self.records.folds["valid"].n else "train"

    # Training --------------------------------------------------------------------------------

    def train(self, message: Message) -> Message:
        """Train, and leave the best weights in the fit's folder."""
        stage = self._stage(self.predictor, self._validation_name)
        source, settings = stage.source, self.settings
        total = len(source) * settings.max_epochs
        total = min(total, settings.max_steps or total)
        high = self._higher_is_better(stage)
        check_watched(high, settings.watch)
        best = BestWeights(settings.watch, high[settings.watch])
        policies = (
            NaNStop(self._documents_of),
            best,
            Reporter(self.send, total),
            Patience(settings.watch, high[settings.watch], settings.patience),
        )
        engine = Engine(Plan([stage], settings.seed), policies)
        engine.run()
        best.restore(engine)
        weights = copy_of_state(self.predictor.model)
        (self.folder / message["weights"]).write_bytes(weights_blob(weights))
        return {**self._result(engine, best, high), "final_hash": weights_hash(weights)}

    def _result(self, engine: Engine, best: BestWeights, high: dict[str, bool]) -> Message:
        assert best.best is not None  # validation has happened before the first step
        fold: FoldName = "test" if self.records.folds["test"].n else self._validation_name
        scored = best.best if fold != "test" else self._scores(self.predictor, "test")
        names = [name for name in high if name in scored]
        return {
            "best": best.best,
            "metrics": {name: scored[name] for name in names},
            "scored": fold,
            "higher_is_better": high,
            "stopped": engine.reason,
            "steps": engine.cursor.step,
        }

    def compare(self, message: Message) -> Message:
        """What another version of the model scores on this fit's validation documents."""
        predictor = self._trainable(message["model"], str(self.device))
        return {"metrics": self._scores(predictor, self._validation_name)}

    def _scores(self, predictor: Predictor, fold: FoldName) -> dict[str, float]:
        stage = self._stage(predictor, fold, trained=False)
        assert stage.validation is not None
        return evaluate(stage, stage.validation)

    def _stage(self, predictor: Predictor, validated: FoldName, *, trained: bool = True) -> Stage:
        settings, folds = self.settings, self.records.folds
        dtype = collate.floating_dtype(predictor.model)
        graph = Graph([Node("model", predictor.model, ("x",), ("output",), apply)])
        graph.to(self.device)
        optimizers = (
            {"main": optimizer_of(settings.optimizer, graph.parameters(), settings.lr)}
            if trained
            else {}
        )
        answers = Answers(predictor, folds[validated], self.fields.targets)
        return Stage(
            graph=graph,
            objective=Objective(
                [Term("loss", FittedLoss(self.loss), ("output", "y"))],
                MixedPrecision(settings.mixed_precision, self.device),
            ),
            source=self._source(folds["train"], dtype, settings.seed),
            optimizers=optimizers,
            validation=self._source(folds[validated], dtype, None),
            metrics=metrics_of(self.metrics, answers),
            max_epochs=settings.max_epochs,
            max_steps=settings.max_steps,
        )

    def _source(self, fold: Fold, dtype: torch.dtype | None, seed: int | None) -> IndexSource:
        device = self.device

        def gather(index: torch.Tensor) -> Frame:
            frame = fold.gather(index, pinned=device.type == "cuda")
            return {name: collate.place(part, device, dtype) for name, part in frame.items()}

        size = self.settings.batch_size
        return IndexSource(fold.n, gather, size, seed, join_single=seed is not None)

    def _higher_is_better(self, stage: Stage) -> dict[str, bool]:
        high = {name: metric.higher_is_better for name, metric in stage.metrics.items()}
        return {"loss": False, **high}

    def _documents_of(self, index: torch.Tensor) -> str:
        ids = [raw["_id"] for raw in self.records.folds["train"].raw(index[:_SHOWN_IDS])]
        more = f" and {len(index) - len(ids)} more" if len(index) > len(ids) else ""
        return f"the documents {', '.join(map(repr, ids))}{more}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
