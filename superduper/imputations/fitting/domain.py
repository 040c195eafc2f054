"""What a fit learns of the domain of its model: references among the training documents, and from
which distance on an input is out of domain. Runs in the child.

The threshold is one of split conformal prediction: of `n` distances of documents that were held
back from the training, the one of rank `ceil((n + 1)(1 - share))`. A document that is like those is
turned away with a chance of at most `share`, whatever the model and whatever the distance.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Protocol

import torch

from superduper.errors import InvalidInput
from superduper.serving import collate
from superduper.serving.domain import Domain, Space, as_rows, parts_of
from superduper.training.cache import Fold

REFERENCES = 1_000
NEIGHBOURS = 5
_CROWDED = 0.05
_ROWS = 1_024
_NUMBERS = 1 << 22
# A distance that is the threshold's own must not be above it in a batch of another size.
_SLACK = 1 + 1e-9


class Rows(Protocol):
    """Samples as rows of features."""

    @property
    def n(self) -> int: ...

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Some of them, `(len(index), features)` of 64 bits."""
        ...


class FoldRows:
    """The inputs of a fold."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold

    @property
    def n(self) -> int:
        """How many there are."""
        return self.fold.n

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Some of them, `(len(index), features)`."""
        rows = as_rows(self.fold.gather(index)["x"], len(index))
        assert rows is not None  # records are tensors
        return rows


def check_inputs(model: Any, fold: Fold) -> None:
    """Raise InvalidInput if a distance between a model's inputs means nothing."""
    first = fold.gather(torch.arange(1))["x"]
    dtypes = {part.dtype for part in parts_of(first)}
    if any(dtype.is_complex for dtype in dtypes):
        raise InvalidInput("out_of_domain: complex inputs have no features to compare")
    if collate.Weights.of(model).embeds and not all(each.is_floating_point for each in dtypes):
        raise InvalidInput(
            "out_of_domain: the model looks whole numbers up in a table (an Embedding), and a "
            "distance between such numbers means nothing: leave it out, or train on features, as "
            "an imputation that reads what an embedding model fills does"
        )


def fit_domain(train: Rows, held_back: Sequence[Rows], share: float, seed: int) -> Domain:
    """The domain of what was trained on `train`; `share` of ordinary documents may be outside.

    Raises InvalidInput if too few documents were held back for that, or inputs are not finite.
    """
    count = sum(rows.n for rows in held_back)
    rank = threshold_rank(count, share)
    chance = torch.Generator().manual_seed(seed)
    mean, deviation = _moments(train)
    if not bool(torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
        raise InvalidInput("out_of_domain: inputs of training documents are infinite or NaN")
    space = Space.of(mean, deviation, chance)
    factor = _whitening(_covariance(train, space), train.n)
    index = torch.randperm(train.n, generator=chance)[:REFERENCES].sort().values
    references = torch.cat([space.place(rows) for rows in _batches(train, index)])
    reaches = torch.stack([_reaches(references), _reaches(references @ factor)])
    found = Domain(space, references, factor, reaches, math.inf)
    scores = torch.cat([found.distances(rows) for fold in held_back for rows in _batches(fold)])
    found.threshold = float(scores.sort().values[rank - 1]) * _SLACK
    return found


def threshold_rank(count: int, share: float) -> int:
    """Which of `count` distances, the smallest being the first, is the threshold.

    Raises InvalidInput if there are too few for that share.
    """
    exact = Fraction(str(share))  # 0.01 is to be one of a hundred, and not a little more
    rank = math.ceil((count + 1) * (1 - exact))
    if rank > count:
        raise InvalidInput(
            f"out_of_domain={share:g} needs at least {math.ceil(1 / exact) - 1} documents that are "
            f"held back (the folds 'valid' and 'test', a fifth of all), there are {count}: add "
            "documents, or allow a larger share"
        )
    return rank


def _batches(rows: Rows, index: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """All rows, or those of an index, as many at once as fit into memory."""
    if not rows.n:
        return
    wanted = torch.arange(rows.n) if index is None else index
    width = rows.take(wanted[:1]).shape[1]
    step = max(1, min(_ROWS, _NUMBERS // max(width, 1)))
    for part in torch.split(wanted, step):
        yield rows.take(part)


def _moments(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each feature, in one pass."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in _batches(rows):
        n, own = len(batch), batch.mean(0)
        apart, total = own - mean, count + n
        squares = squares + ((batch - own) ** 2).sum(0) + apart**2 * (count * n / total)
        mean = mean + apart * (n / total)
        count = total
    return mean, (squares / count).sqrt()


def _covariance(rows: Rows, space: Space) -> torch.Tensor:
    """The covariance of the features in their space, in one pass."""
    width = space.place(rows.take(torch.arange(1))).shape[1]
    products = torch.zeros(width, width, dtype=torch.float64)
    sums = torch.zeros(width, dtype=torch.float64)
    for batch in _batches(rows):
        placed = space.place(batch)
        products += placed.T @ placed
        sums += placed.sum(0)
    mean = sums / rows.n
    return products / rows.n - torch.outer(mean, mean)


def _whitening(covariance: torch.Tensor, count: int) -> torch.Tensor:
    """What makes features of that covariance independent: `(features, features)`.

    The covariance is shrunk towards equal ones, by Chen's formula (oracle approximating shrinkage),
    or what a few documents happen never to do would count as impossible.
    """
    width = len(covariance)
    trace, squares = covariance.trace(), (covariance * covariance).sum()
    above = (1 - 2 / width) * squares + trace**2
    below = (count + 1 - 2 / width) * (squares - trace**2 / width)
    shrinkage = float((above / below).clamp(max=1)) if below > 0 else 1.0
    equal = torch.eye(width, dtype=torch.float64) * trace / width
    shrunk = (1 - shrinkage) * covariance + shrinkage * equal
    shrunk += torch.eye(width, dtype=torch.float64) * 1e-9  # all the same, or nearly
    factor: torch.Tensor = torch.linalg.cholesky(torch.linalg.inv(shrunk))
    return factor


def _reaches(references: torch.Tensor) -> torch.Tensor:
    """How far each reference reaches: the usual distance to the nearest other one, more where the
    others are sparse and less in a crowd."""
    apart = torch.cdist(references, references).fill_diagonal_(math.inf).sort().values
    nearest = apart[:, 0]
    spread = nearest[(nearest > 0) & nearest.isfinite()]
    if not len(spread):  # there is one only, or all are the same
        return torch.ones(len(references), dtype=torch.float64)
    usual = spread.median()
    around = apart[:, min(NEIGHBOURS, len(references) - 1) - 1].clamp(min=_CROWDED * float(usual))
    return usual * (around / around.median()).sqrt()
