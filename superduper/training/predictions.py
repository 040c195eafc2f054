"""What a trained model says about records, as plain values: classes with probabilities, or numbers.

A model may answer a distribution or a tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from superduper.errors import InvalidInput

_CLASSES = (torch.distributions.Categorical, torch.distributions.OneHotCategorical)


@dataclass(frozen=True)
class Predicted:
    """A value per record; for classes, their numbers and the probability of each class."""

    values: torch.Tensor
    probabilities: torch.Tensor | None = None


def predict(model: torch.nn.Module, *features: torch.Tensor) -> Predicted:
    """Apply a model to a batch, in evaluation mode."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with _evaluating(model), torch.no_grad():
        answer = model(*[part.to(device) for part in features])
        return _plain(model, answer)


def _plain(model: torch.nn.Module, answer: Any) -> Predicted:
    if isinstance(answer, _CLASSES):
        probabilities = answer.probs.cpu()
        return Predicted(probabilities.argmax(-1), probabilities)
    if isinstance(answer, torch.distributions.Bernoulli):
        yes = answer.probs.cpu()
        return Predicted((yes > 0.5).long(), torch.stack([1 - yes, yes], -1))
    if isinstance(answer, torch.distributions.Distribution):
        return Predicted(answer.mean.cpu())
    if isinstance(answer, torch.Tensor):
        return Predicted(answer.cpu())
    raise InvalidInput(
        f"{type(model).__name__} returned a {type(answer).__name__}: predictions are read from a "
        "distribution or a tensor"
    )


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
