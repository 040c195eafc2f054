"""The child of a fit: it alone loads user code, makes records of documents, and trains.

The parent sends `load`, then `documents` in batches (or `reopen`, with what an earlier fit made of
them), then `seal`, `train`, and perhaps `compare`.
The child has no access to the database; weights go back as a file in the fit's own folder.
"""

import platform
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import bson
import numpy
import torch
from bson.codec_options import CodecOptions, DatetimeConversion
from safetensors.torch import save

from superduper.devices import child_device, device_name, train_repeatably
from superduper.errors import InvalidInput
from superduper.imputations.fitting.domain import FoldRows, check_inputs, fit_domain
from superduper.imputations.fitting.folds import Fold as FoldName
from superduper.imputations.fitting.measures import apply
from superduper.imputations.fitting.records import (
    Fields,
    RecordMaker,
    Target,
    function_target,
    model_target,
    raw_target,
)
from superduper.imputations.fitting.reports import Reporter, Saver
from superduper.imputations.fitting.stage import Parts, Settings, StageMaker
from superduper.imputations.fitting.trainer import check_trainer
from superduper.jobs.channel import Channel, Message, serve
from superduper.serving import collate
from superduper.serving.predictor import Predictor
from superduper.store.unsealing import load
from superduper.training.checkpoints import Checkpoints
from superduper.training.distributed import GroupEngine, HandedBatches, engine_of, shared_by
from superduper.training.engine import Engine, Plan, Stage, evaluate
from superduper.training.group import Group
from superduper.training.policies import BestWeights, NaNStop, Patience, check_watched
from superduper.training.randomness import seed_everything
from superduper.training.ranking import is_cost
from superduper.training.weights import copy_of_state, weights_blob, weights_hash
from superduper.version import __version__

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
            "reopen": fitting.reopen,
            "seal": fitting.seal,
            "train": fitting.train,
            "compare": fitting.compare,
        },
    )


class Fitting:
    """The state of one fit between the parent's messages."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self.send = send
        self._example: Any = None

    # Loading ---------------------------------------------------------------------------------

    def load(self, message: Message) -> Message:
        """Load the components and get ready for documents."""
        torch.set_num_threads(1)
        self.device = child_device(message["device"])
        train_repeatably(self.device)
        self._loaded = message
        self.settings = Settings(**message["settings"])
        self.out_of_domain: float | None = message["out_of_domain"]
        self.saving_seconds = float(message["saving_seconds"])
        self.folder = Path(message["folder"])
        self.fields = Fields(*(tuple(message["fields"][key]) for key in Fields.__annotations__))
        seed_everything(self.settings.seed)
        self.predictor = self._trainable(message["model"], str(self.device))
        self.parts = self._parts(message)
        target = self._target(message.get("target"))
        self.records = RecordMaker(
            self.predictor, target, self.fields, self.folder / message["records"]
        )
        self.stages = StageMaker(
            self.settings,
            self.parts,
            self.records.folds,
            self.fields.targets,
            self.device,
            self.folder,
        )
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        return {
            "device": device_name(self.device),
            "versions": {**versions, "numpy": numpy.__version__, "superduper": __version__},
        }

    def _parts(self, message: Message) -> Parts:
        """The registered objects, loaded."""

        def loaded(payload: Any) -> Any:
            return None if payload is None else self._placed(load(payload)["object"])

        several = {
            kind: {name: loaded(each) for name, each in message[kind].items()}
            for kind in ("metrics", "optimizers", "policies")
        }
        trainer = loaded(message["trainer"])
        if trainer is not None:
            check_trainer(trainer)
        return Parts(loss=loaded(message["loss"]), trainer=trainer, **several)

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

    def reopen(self, message: Message) -> Message:
        """Have the records of an earlier fit instead of documents, if they are whole."""
        return {"opened": self.records.reopen(Path(message["folder"]))}

    def seal(self, message: Message) -> Message:
        """There are all documents: the hashes of the data, and what was skipped."""
        if not message["reopened"]:
            self.records.seal()
        saved = not message["reopened"] and self.records.save()
        self._materialise()
        skipped = self.records.skipped
        return {
            "saved": saved,
            "initial_hash": weights_hash(self.predictor.model.state_dict()),
            "data": {
                name: {"n": fold.n, "hash": fold.hash} for name, fold in self.records.folds.items()
            },
            "validated_on": self._validation_name,
            "skipped": {"count": skipped.count, "first": skipped.first},
            "domain": self._keep_domain(self.folder / message["domain"]),
        }

    def _keep_domain(self, path: Path) -> Message | None:
        """Leave what inputs are to be compared with, if they are; what is told of it.

        Before the training, which would be in vain if there are too few documents for it.
        """
        if self.out_of_domain is None:
            return None
        folds = {name: FoldRows(fold) for name, fold in self.records.folds.items()}
        check_inputs(self.predictor.model, folds["train"].fold)
        held_back = (folds["valid"], folds["test"])
        found = fit_domain(folds["train"], held_back, self.out_of_domain, self.settings.seed)
        path.write_bytes(save(found.tensors()))
        return {
            "threshold": found.threshold,
            "references": len(found.references),
            "calibrated_on": sum(rows.n for rows in held_back),
        }

    def _materialise(self) -> None:
        """Let lazy layers learn their sizes from one record."""
        model = self.predictor.model
        if any(torch.nn.parameter.is_lazy(weight) for weight in model.parameters()):
            fold = self.records.folds["train"]
            source = self.stages.source(fold, collate.floating_dtype(model), None)
            self._example = next(source.batches(0)).frame["x"]
            self._learn_sizes()

    def _learn_sizes(self) -> None:
        with torch.no_grad():
            apply(self.predictor.model.eval(), self._example)

    @property
    def _validation_name(self) -> FoldName:
        return "valid" if self.records.folds["valid"].n else "train"

    # Training --------------------------------------------------------------------------------

    def train(self, message: Message) -> Message:
        """Train, and leave the best weights in the fit's folder.

        `resume` names a folder within it with a checkpoint to go on from.
        """
        stage = self.stages.stage(self.predictor, self._validation_name)
        stage = replace(stage, describe=self._documents_of)
        with self._shared(stage) as group:
            engine, best = self._engine(stage, group)
            if message["resume"] is not None:
                state = Checkpoints(self.folder / message["resume"]).latest()
                if state is None:
                    raise InvalidInput("the checkpoint was damaged on its way")
                engine.load_state_dict(state)
            engine.run()
        best.restore(engine)
        weights = copy_of_state(self.predictor.model)
        (self.folder / message["weights"]).write_bytes(weights_blob(weights))
        return {**self._result(engine, best, stage), "final_hash": weights_hash(weights)}

    def _shared(self, stage: Stage) -> AbstractContextManager[Group | None]:
        """The other processes of this fit, if it is to have some."""
        sizes = {name: fold.n for name, fold in self.records.folds.items()}
        # Each of them sees one GPU only, which is the first to it.
        loaded = {**self._loaded, "device": self.device.type}
        given = (loaded, sizes, self._example)
        return shared_by(self.settings.processes, stage.graph, help_with_fit, *given)

    def _engine(self, stage: Stage, group: Group | None) -> tuple[Engine, BestWeights]:
        """The engine with its policies, in the order that matters: who ends the run, then who
        reports, then who saves."""
        settings = self.settings
        watch, high = settings.watch, self._is_higher_better(settings.watch, stage)
        if self.parts.trainer is None:
            check_watched({"loss": None, **stage.metrics}, watch)
        total = len(stage.source) * settings.max_epochs
        asked = self.stages.policies(stage)
        reporter = Reporter(self.send, min(total, settings.max_steps or total), asked)
        best = BestWeights(watch, high)
        policies = [
            NaNStop(),
            best,
            *asked,
            Patience(watch, high, settings.patience),
            reporter,
            Saver(self.folder / "checkpoints", self.saving_seconds, self.send, reporter),
        ]
        return engine_of(Plan([stage], settings.seed), policies, group), best

    def help(self, group: Group, sizes: Mapping[str, int], example: Any) -> None:
        """Train as another process of a fit, which has no documents and is handed each batch."""
        for name, fold in self.records.folds.items():
            fold.n = sizes[name]  # what a trainer's steps may ask for
        if example is not None:
            self._example = example
            self._learn_sizes()
        stage = replace(self.stages.stage(self.predictor, "train"), source=HandedBatches())
        GroupEngine(Plan([stage], self.settings.seed), [], group).run()

    def _result(self, engine: Engine, best: BestWeights, stage: Stage) -> Message:
        assert best.best is not None  # validation has happened before the first step
        fold: FoldName = "test" if self.records.folds["test"].n else self._validation_name
        scored = best.best if fold != "test" else self._scores(self.predictor, "test")
        names = [name for name in best.best if name not in ("epoch", "step")]
        return {
            "best": best.best,
            "metrics": {name: scored[name] for name in names if name in scored},
            "scored": fold,
            "higher_is_better": {name: self._is_higher_better(name, stage) for name in names},
            "stopped": engine.reason,
            "steps": engine.cursor.step,
        }

    def _is_higher_better(self, name: str, stage: Stage) -> bool:
        if name in stage.metrics:
            return stage.metrics[name].higher_is_better
        return not is_cost(name)

    def compare(self, message: Message) -> Message:
        """What another version of the model scores on this fit's validation documents."""
        predictor = self._trainable(message["model"], str(self.device))
        return {"metrics": self._scores(predictor, self._validation_name)}

    def _scores(self, predictor: Predictor, fold: FoldName) -> dict[str, float]:
        stage = self.stages.stage(predictor, fold)
        assert stage.validation is not None
        return evaluate(stage, stage.validation)

    def _documents_of(self, index: torch.Tensor) -> str:
        ids = [raw["_id"] for raw in self.records.folds["train"].raw(index[:_SHOWN_IDS])]
        more = f" and {len(index) - len(ids)} more" if len(index) > len(ids) else ""
        return f"the documents {', '.join(map(repr, ids))}{more}"


def help_with_fit(group: Group, message: Message, sizes: Mapping[str, int], example: Any) -> None:
    """What another process of a fit does: it loads the same, and helps."""
    with tempfile.TemporaryDirectory(prefix="superduper-fit-") as folder:
        fitting = Fitting(lambda message: None)
        fitting.load({**message, "folder": folder})
        fitting.help(group, sizes, example)
