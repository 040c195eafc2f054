"""Telling whether inputs are out of domain: CPU for each document, with it and without."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from superduper.imputations.fitting.domain import fit_domain
from superduper.serving.blocks import Block, floats
from superduper.serving.predictor import Predictor
from superduper.serving.stored import predict_stored

FEATURES = 64
SECONDS = 1.0


class _Table:
    """Rows of features that are there already."""

    def __init__(self, rows: Any) -> None:
        self.rows = torch.tensor(rows, dtype=torch.float64)
        self.n = len(rows)

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Some of them."""
        return self.rows[index]


def _network(width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)
    )


def _micros(run: Callable[[], Any], count: int) -> float:
    """Microseconds of CPU for each of `count` documents."""
    run()
    times, began = 0, time.process_time()
    while time.process_time() - began < SECONDS:
        run()
        times += 1
    return 1e6 * (time.process_time() - began) / times / count


def _label(row: torch.Tensor) -> int:
    return int(row.argmax())


def _one(width: int, count: int, labelled: bool, domain: Any, rows: Any) -> dict[str, Any]:
    """One row: `labelled` models have a postprocess, others give back vectors as they are."""
    first = Block(floats(FEATURES), rows[:count].tobytes())
    values: Sequence[Any] = list(first) if labelled else first
    after = _label if labelled else None
    predictors = [Predictor(_MODELS[width], postprocess=after, domain=it) for it in (None, domain)]
    without, with_it = (
        _micros(partial(predict_stored, each, values), count) for each in predictors
    )
    return {
        "width": width,
        "answers": "labels" if labelled else "vectors",
        "batch": count,
        "without_us": round(without, 1),
        "with_us": round(with_it, 1),
        "for_it_us": round(with_it - without, 1),
    }


_MODELS = {width: _network(width) for width in (32, 2048)}


def run(*, small: bool = False) -> dict[str, Any]:
    """Microseconds of CPU for a document of 64 floats, by model, answers and batch."""
    torch.set_num_threads(1)
    rows = np.random.default_rng(0).normal(size=(1_800, FEATURES)).astype("<f4")
    domain = fit_domain(_Table(rows[:1_400]), [_Table(rows[1_400:])], 0.01, 0)
    distances = domain.distances(torch.tensor(rows).double())
    inside = rows[(distances <= domain.threshold).numpy()]
    found = [
        _one(width, count, labelled, domain, inside)
        for width in _MODELS
        for labelled in (False, True)
        for count in ((256,) if small else (1, 16, 256))
    ]
    return {"references": len(domain.references), "rows": found}
