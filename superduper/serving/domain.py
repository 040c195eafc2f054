"""Whether a sample is like those that a model was trained on: how far the nearest of them is.

    sample -> flat -> standardised -> pulled in -> folded -> nearest reference, twice -> distance

- Each feature is measured in its own deviation among the training samples. What lies far out is
  pulled in by a logarithm: a pixel that is hardly ever set would outweigh all others else.
- More features than 256 are folded into 256 sums with random signs, which leaves distances about
  what they were. So the work for a sample grows neither with the model nor, much, with the sample.
- Two distances are taken to the nearest of the references, which are training samples: between
  the features as they are, which tells an empty image; and with all that they have in common taken
  out (whitened), which tells a value that does not go with the others. Each is told in the reach
  of the reference, by which one in a crowd must be nearer than one by itself; the larger counts.

Numbers are of 64 bits, so that a distance is the same in a batch of any size but for 1 in 10^9.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from superduper.serving.failures import Failure

FEATURES = 256
NUMBERS = 1 << 20
"""How many features are looked at at once, of however many samples."""
PULLED_IN = 2.0
"""From about how many deviations on a logarithm takes hold."""
_SPACE = ("mean", "deviation", "places", "signs")

Outside = dict[str, float | None]
"""`distance` (None where there is none to a sample of another size, or of no number) and
`threshold`."""


def as_rows(tree: Any, count: int) -> torch.Tensor | None:
    """The features of `count` samples in one batch, `(count, features)`; None if they have none."""
    parts = list(parts_of(tree))
    if not parts or not all(_is_plain(part) for part in parts):
        return None
    numbers = [part.detach().to("cpu", torch.float64) for part in parts]
    return torch.cat([part.reshape(count, -1) for part in numbers], 1)


def _is_plain(part: Any) -> bool:
    is_dense = isinstance(part, torch.Tensor) and part.layout is torch.strided
    return is_dense and not part.is_complex()


def parts_of(tree: Any) -> Iterator[Any]:
    """What a sample, or a batch, is made of: tensors, as a rule, always in the same order."""
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from parts_of(tree[key])
    elif isinstance(tree, tuple):
        for branch in tree:
            yield from parts_of(branch)
    else:
        yield tree


@dataclass(frozen=True)
class Space:
    """Where features become comparable. `places` and `signs` say how they are folded, if they are.

    `mean`, `deviation`, `places` (whole numbers) and `signs` (1 or -1) have one number a feature.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    places: torch.Tensor
    signs: torch.Tensor

    @classmethod
    def of(cls, mean: torch.Tensor, deviation: torch.Tensor, chance: torch.Generator) -> "Space":
        """The space of features with these means and deviations."""
        spread = deviation[deviation > 0]
        # What never differed has no unit of its own.
        usual = spread.median() if len(spread) else torch.ones((), dtype=torch.float64)
        unit = torch.where(deviation > 0, deviation, usual)
        places, signs = torch.arange(len(mean)), torch.ones(len(mean))
        if len(mean) > FEATURES:
            places = torch.randint(FEATURES, (len(mean),), generator=chance)
            signs = torch.randint(2, (len(mean),), generator=chance) * 2.0 - 1.0
        return cls(mean, unit, places.short(), signs.to(torch.int8))

    def place(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of features `(n, features)` in this space, `(n, at most 256)`."""
        standard = (rows - self.mean) / self.deviation
        pulled = PULLED_IN * torch.asinh(standard / PULLED_IN)
        if len(self.mean) <= FEATURES:
            return pulled
        folded = torch.zeros(len(rows), FEATURES, dtype=torch.float64)
        return folded.index_add_(1, self.places.long(), pulled * self.signs)


class Domain:
    """What a version of a model was trained on, as far as telling others from it needs.

    `references` are training samples in `space` `(m, features)`, `factor` whitens them, `reaches`
    `(2, m)` are theirs in both views, `threshold` is the largest distance that is still inside.
    """

    def __init__(
        self,
        space: Space,
        references: torch.Tensor,
        factor: torch.Tensor,
        reaches: torch.Tensor,
        threshold: float,
    ) -> None:
        self.space = space
        self.references = references
        self.factor = factor
        self.reaches = reaches
        self.threshold = threshold
        self._at_once = max(1, NUMBERS // max(1, len(space.mean)))
        self._views = _View(references, reaches[0]), _View(references @ factor, reaches[1])

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> "Domain":
        """The domain that was kept as these tensors."""
        space = Space(**{name: tensors[name] for name in _SPACE})
        references, factor = tensors["references"], tensors["factor"]
        return cls(space, references, factor, tensors["reaches"], float(tensors["threshold"]))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What `of` needs, for a safetensors file."""
        tensors = {
            **{name: getattr(self.space, name) for name in _SPACE},
            "references": self.references,
            "factor": self.factor,
            "reaches": self.reaches,
            "threshold": torch.tensor(self.threshold, dtype=torch.float64),
        }
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    def distances(self, rows: torch.Tensor) -> torch.Tensor:
        """How far each of some rows of features is; NaN where a feature is no finite number."""
        placed = self.space.place(rows)
        plain, white = self._views
        return torch.maximum(plain.nearest(placed), white.nearest(placed @ self.factor))

    def holds(self, batch: torch.Tensor) -> bool:
        """Whether no sample of a batch is out of domain."""
        return all(map(self._all_inside, torch.split(batch, self._at_once)))

    def _all_inside(self, batch: torch.Tensor) -> bool:
        rows = as_rows(batch, len(batch))
        if rows is None or rows.shape[1] != len(self.space.mean):
            return False
        return bool((self.distances(rows) <= self.threshold).all())

    def outside(self, samples: Sequence[Any]) -> list[Outside | None]:
        """For each sample what makes it out of domain; None if it is not, or has failed already."""
        found: list[Outside | None] = []
        for first in range(0, len(samples), self._at_once):
            part = samples[first : first + self._at_once]
            distances = self.distances(self._rows(part)).tolist()
            found += [
                None if isinstance(sample, Failure) else self._judged(distance)
                for sample, distance in zip(part, distances, strict=True)
            ]
        return found

    def _rows(self, samples: Sequence[Any]) -> torch.Tensor:
        width = len(self.space.mean)
        if all(_is_plain(each) and each.numel() == width for each in samples):  # most often
            return torch.stack([each.reshape(-1) for each in samples]).detach().double().cpu()
        return torch.cat([self._row(each) for each in samples])

    def _row(self, sample: Any) -> torch.Tensor:
        width = len(self.space.mean)
        row = None if isinstance(sample, Failure) else as_rows(sample, 1)
        if row is None or row.shape[1] != width:
            return torch.full((1, width), math.nan, dtype=torch.float64)
        return row

    def _judged(self, distance: float) -> Outside | None:
        if distance <= self.threshold:
            return None
        known = None if math.isnan(distance) else distance
        return {"distance": known, "threshold": self.threshold}


class _View:
    """References to whose nearest distances are taken, each told in that reference's reach."""

    def __init__(self, references: torch.Tensor, reaches: torch.Tensor) -> None:
        weights = 1 / reaches**2
        turned = -2 * references.T * weights
        self._turned = torch.cat([turned, weights[None]]).contiguous()
        self._squares = (references * references).sum(1) * weights

    def nearest(self, points: torch.Tensor) -> torch.Tensor:
        """The distance of each point `(n, features)` to the nearest reference."""
        # |p - r|² = |r|² - 2pr + |p|²: one product of matrices for all of them.
        lengths = (points * points).sum(1, keepdim=True)
        apart = torch.addmm(self._squares, torch.cat([points, lengths], 1), self._turned)
        return apart.amin(1).clamp(min=0).sqrt()
