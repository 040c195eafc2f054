"""From documents to training records: preprocess, target, and what fails. Runs in the child."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bson
import torch

from superduper.errors import InvalidInput, UserCodeError
from superduper.fields import codec
from superduper.imputations.fitting.folds import FOLDS
from superduper.imputations.fitting.folds import Fold as FoldName
from superduper.imputations.provenance import as_one_value, input_values
from superduper.serving import collate
from superduper.serving.failures import Failure, each
from superduper.serving.predictor import Predictor
from superduper.training.cache import Fold, layout
from superduper.training.graph import description

LISTED_FAILURES = 20
SKIPPED = "skipped.bson"
_SHOWN_FAILURES = 3

Document = Mapping[str, Any]
Target = Callable[[Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Fields:
    """Which fields of a document are read."""

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    excluded: tuple[str, ...]


@dataclass
class Skipped:
    """Documents that could not be made into records: how many, and the first ones with reasons."""

    count: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)

    def add(self, document_id: Any, error: Mapping[str, Any]) -> None:
        """Note one."""
        self.count += 1
        if len(self.first) < LISTED_FAILURES:
            kept = {key: error[key] for key in ("type", "message", "traceback") if key in error}
            self.first.append({"document": document_id, "error": kept})

    def summary(self) -> str:
        """The first few in one text."""
        return "; ".join(
            f"document {entry['document']!r}: {entry['error']['type']}: {entry['error']['message']}"
            for entry in self.first[:_SHOWN_FAILURES]
        )


class RecordMaker:
    """Turns documents into the records of three folds."""

    def __init__(self, predictor: Predictor, target: Target, fields: Fields, folder: Path) -> None:
        self.predictor = predictor
        self.target = target
        self.fields = fields
        self.folder = folder
        self.folds = {name: Fold(folder / name) for name in FOLDS}
        self.skipped = Skipped()
        self._first: tuple[Any, Any, Any] | None = None

    @property
    def made(self) -> int:
        """The number of records so far."""
        return sum(fold.n for fold in self.folds.values())

    def take(self, documents: Sequence[Document], folds: Sequence[FoldName]) -> None:
        """Make records of a batch of documents; those that fail are listed and skipped."""
        inputs = each(self._inputs, documents)
        targets = each(self._targets, documents)
        samples = _after(self.predictor.samples, inputs)
        answers = _after(self.target, targets)
        for document, fold, x, y in zip(documents, folds, samples, answers, strict=True):
            self._keep(document, fold, x, y)

    def _inputs(self, document: Document) -> Any:
        values = input_values(document, self.fields.inputs, self.fields.excluded)
        return codec.decode_input(as_one_value(values or (), self.fields.inputs))

    def _targets(self, document: Document) -> Any:
        values = input_values(document, self.fields.targets)
        return codec.decode_input(as_one_value(values or (), self.fields.targets))

    def _keep(self, document: Document, fold: FoldName, x: Any, y: Any) -> None:
        failed = next((part for part in (x, y) if isinstance(part, Failure)), None)
        if failed is not None:
            self.skipped.add(document["_id"], failed.error)
            return
        try:
            self._check(document["_id"], x, y)
        except InvalidInput as error:
            self.skipped.add(document["_id"], {"type": "InvalidInput", "message": error.message})
            return
        inputs = input_values(document, self.fields.inputs, self.fields.excluded)
        targets = input_values(document, self.fields.targets)
        raw = bson.encode({"_id": document["_id"], "targets": targets})
        self.folds[fold].append(x, y, raw, raw + bson.encode({"inputs": inputs}))

    def _check(self, document_id: Any, x: Any, y: Any) -> None:
        """All records must have one form, that of the first."""
        form = []
        for what, sample in (("the model's input", x), ("the target", y)):
            try:
                form.append(layout(sample))
            except InvalidInput as error:
                raise InvalidInput(f"{what} cannot be trained on: {error.message}") from error
        if self._first is None:
            self._first = (document_id, (x, y), form)
            return
        first_id, first, first_form = self._first
        if form != first_form:
            index, what = (0, "input") if form[0] != first_form[0] else (1, "target")
            raise InvalidInput(
                f"the {what} has {description((x, y)[index])}, that of document {first_id!r} has "
                f"{description(first[index])}: all must be of one shape; resize or pad them in "
                f"{'preprocess' if index == 0 else 'the target'}"
            )

    def seal(self) -> None:
        """No more documents come.

        Raises UserCodeError if more than half of them failed, InvalidInput if there were none.
        """
        for fold in self.folds.values():
            fold.seal()
        total = self.made + self.skipped.count
        if total == 0:
            raise InvalidInput(
                "there is nothing to train on: no document has all of "
                f"{', '.join(repr(path) for path in (*self.fields.inputs, *self.fields.targets))} "
                "with a value that a person gave"
            )
        if self.skipped.count * 2 > total:
            raise UserCodeError(
                f"{self.skipped.count} of {total} documents could not be trained on: "
                f"{self.skipped.summary()}"
            )
        if self.folds["train"].n == 0:
            raise InvalidInput(
                f"none of the {self.made} usable documents is in the fold 'train' (a tenth each is "
                "kept for 'valid' and 'test'): add documents, or set `_fold` in them"
            )

    def save(self) -> bool:
        """Make the sealed records such that `reopen` can have them; False if that cannot be."""
        try:
            for fold in self.folds.values():
                fold.save()
            skipped = bson.encode({"count": self.skipped.count, "first": self.skipped.first})
        except bson.errors.BSONError:  # a sample with keys that only Python knows
            return False
        (self.folder / SKIPPED).write_bytes(skipped)
        return True

    def reopen(self, folder: Path) -> bool:
        """Have the records that an earlier fit saved; False if they are not whole any more."""
        try:
            folds = {name: Fold.opened(folder / name) for name in FOLDS}
            self.skipped = Skipped(**bson.decode((folder / SKIPPED).read_bytes()))
        except (OSError, InvalidInput, bson.errors.BSONError):
            return False
        for fold in self.folds.values():
            fold.close()
        self.folds.update(folds)
        return True


def _after(function: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
    """The function on those items that have not failed, each result in its place."""
    good = [item for item in items if not isinstance(item, Failure)]
    results = iter(function(good) if good else [])
    return [item if isinstance(item, Failure) else next(results) for item in items]


# Targets -----------------------------------------------------------------------------------------


def function_target(function: Callable[[Any], Any]) -> Target:
    """A target that is a function of the field's value."""

    def answers(values: Sequence[Any]) -> list[Any]:
        made = each(lambda value: _label(function(value)), values)
        return [_explained(*pair) for pair in zip(made, values, strict=True)]

    return answers


def _explained(made: Any, value: Any) -> Any:
    """A failure of the target that says which value it was given, where that can be shown."""
    if not isinstance(made, Failure) or not isinstance(value, str | int | float | list | None):
        return made
    message = f"{made.error['message']} (the target was given {value!r:.80})"
    return Failure({**made.error, "message": message})


def raw_target(values: Sequence[Any]) -> list[Any]:
    """The target of an imputation without one: the field's value itself."""
    return each(_raw_label, values)


def _raw_label(value: Any) -> Any:
    if value is None or isinstance(value, str):
        raise InvalidInput(f"{value!r:.80} is no number: give a `target` that makes one of it")
    return _label(value)


def model_target(predictor: Predictor) -> Target:
    """A target that is another model: its output, without gradients, before any postprocess."""
    model = predictor.model
    dtype = collate.floating_dtype(model)
    if isinstance(model, torch.nn.Module):
        model.eval()

    def forward(sample: Any) -> Any:
        batch = collate.place(collate.collate([sample]), "cpu", dtype)
        return _label(collate.unbatch(collate.call(model, batch), 1)[0])

    def answers(values: Sequence[Any]) -> list[Any]:
        with torch.no_grad():
            return each(forward, predictor.samples(values))

    return answers


def _label(value: Any) -> Any:
    """A target's answer as tensors; truth values become 0 and 1, as losses want them."""
    sample = collate.to_tensors(value)
    if not isinstance(sample, torch.Tensor):
        return sample
    single = sample.dtype == torch.bool and sample.ndim == 0
    return sample.detach().to(torch.int64 if single else sample.dtype)
