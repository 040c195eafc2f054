"""What a fit minimises and measures: losses on tensors, metrics on documents. For the child."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from superduper.errors import UserCodeError
from superduper.fields import codec
from superduper.imputations.provenance import as_one_value
from superduper.serving import collate
from superduper.serving.failures import WrongRows
from superduper.serving.predictor import Predictor
from superduper.training.cache import Fold
from superduper.training.graph import Frame
from superduper.training.metrics import Metric, StreamMetric, is_stream_metric
from superduper.training.ranking import prefers_high
from superduper.training.sources import Batch


class FittedLoss:
    """A loss that is given targets in the form of the outputs where both are one number each.

    Outputs of shape (B, 1) and targets of shape (B,), or the other way round, would be spread to
    (B, B) by many losses: such targets take the outputs' shape, and if they are whole numbers and
    the outputs are not, their datatype. All other targets are left as they are.
    """

    def __init__(self, loss: Callable[..., torch.Tensor]) -> None:
        self.loss = loss
        self.reduction = getattr(loss, "reduction", "mean")

    def __call__(self, output: Any, target: Any) -> torch.Tensor:
        check_rows(output, target)
        return self.loss(output, like_output(output, target))


def check_rows(output: Any, target: Any) -> None:
    """Raise WrongRows if the output has another number of rows than the target.

    Some losses would spread the one over the other and learn nonsense.
    """
    if not isinstance(output, torch.Tensor) or not isinstance(target, torch.Tensor):
        return
    rows = len(output) if output.ndim else 1
    if target.ndim and rows != len(target):
        raise WrongRows.of("the model", rows, len(target))


def like_output(output: Any, target: Any) -> Any:
    """The target in the output's shape and datatype, where both have one number per record."""
    if not isinstance(output, torch.Tensor) or not isinstance(target, torch.Tensor):
        return target
    single = target.ndim == 1 or (target.ndim == 2 and target.shape[1] == 1)
    if not single or target.numel() != output.numel():
        return target
    if output.is_floating_point() and not target.is_floating_point():
        target = target.to(output.dtype)
    return target.reshape(output.shape)


class Answers:
    """What the model answers for the records of a batch, as it would for documents.

    Several metrics ask for the same batch: it is answered once.
    """

    def __init__(self, predictor: Predictor, fold: Fold, target_paths: tuple[str, ...]) -> None:
        self.predictor = predictor
        self.fold = fold
        self.target_paths = target_paths
        self._frame: Frame | None = None
        self._answers: list[tuple[Any, Any, Any]] = []

    def of(self, frame: Frame, batch: Batch) -> list[tuple[Any, Any, Any]]:
        """For each record: `_id`, the model's answer, the value in the document.

        Raises UserCodeError that names the document if the model has no answer.
        """
        if self._frame is not frame:
            outcomes = self.predictor.outcomes(frame["output"], batch.n)
            raws = self.fold.raw(batch.index)
            self._answers = [self._one(*pair) for pair in zip(outcomes, raws, strict=True)]
            self._frame = frame
        return self._answers

    def _one(self, outcome: Mapping[str, Any], raw: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        if "error" in outcome:
            error = outcome["error"]
            raise UserCodeError(
                f"the model's output for document {raw['_id']!r} could not be made into a value: "
                f"{error['type']}: {error['message']}"
            )
        value = as_one_value([codec.decode(value) for value in raw["targets"]], self.target_paths)
        return raw["_id"], outcome["value"], value


class DocumentMetric:
    """The mean over documents of `metric(answer, value)`."""

    def __init__(self, name: str, metric: Callable[[Any, Any], Any], answers: Answers) -> None:
        self.name = name
        self.metric = metric
        self.answers = answers
        self.higher_is_better = prefers_high(metric)
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self.sum = 0.0
        self.n = 0

    def update(self, frame: Frame, batch: Batch) -> None:
        """Take in a batch.

        Raises UserCodeError that names metric and document if the metric raises.
        """
        for document_id, answer, value in self.answers.of(frame, batch):
            try:
                self.sum += float(self.metric(answer, value))
            except Exception as error:  # a user's function may raise anything
                raise UserCodeError(
                    f"metric {self.name!r} raised {type(error).__name__}: {error!s:.300} on "
                    f"document {document_id!r}, where the model answered {answer!r:.80} and the "
                    f"value is {value!r:.80}"
                ) from error
            self.n += 1

    def compute(self) -> float:
        """The mean."""
        return self.sum / self.n


def metrics_of(functions: Mapping[str, Any], answers: Answers) -> dict[str, Metric]:
    """The metrics by name: torchmetrics' on batches of outputs and targets, others on documents."""
    return {
        name: StreamMetric(metric)
        if is_stream_metric(metric)
        else DocumentMetric(name, metric, answers)
        for name, metric in functions.items()
    }


def apply(module: torch.nn.Module, batch: Any) -> Any:
    """The model on a batch, as the predictor applies it."""
    return collate.call(module, batch)
