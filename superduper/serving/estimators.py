"""Apply an estimator (as scikit-learn's): all samples at once, as one array if they are numbers."""

from collections.abc import Mapping
from typing import Any

from superduper.errors import InvalidInput
from superduper.serving.rows import Row, split


def has_chances(model: Any) -> bool:
    """Whether the estimator tells how likely each class is."""
    return hasattr(model, "predict_proba")


def estimate(model: Any, samples: list[Any]) -> list[Row]:
    """A row for each sample; may raise anything."""
    given = _estimator_input(samples, is_sklearn=hasattr(model, "get_params"))
    outputs = split(model.predict(given), len(samples), "predict")
    chances = model.predict_proba(given) if has_chances(model) else None
    if getattr(chances, "ndim", None) != 2:  # several targets at once have no one confidence
        return [Row(output) for output in outputs]
    rows = split(chances, len(samples), "predict_proba")
    return [Row(output, row.max()) for output, row in zip(outputs, rows, strict=True)]


def _estimator_input(samples: list[Any], is_sklearn: bool) -> Any:
    """All samples as one array, a number alone as a row of one for scikit-learn; else as a list."""
    import numpy  # here, for functions do without; whatever else is loaded must change nothing

    arrays = [_array(sample, numpy) for sample in samples]
    if any(array is None for array in arrays):
        return samples
    different = next((array for array in arrays if array.shape != arrays[0].shape), None)
    if different is not None:
        raise InvalidInput(
            f"samples differ: one has shape {different.shape}, the first has {arrays[0].shape}: "
            "preprocess must give every sample the same one"
        )
    stacked = numpy.stack(arrays)
    return stacked[:, None] if is_sklearn and stacked.ndim == 1 else stacked


def _array(sample: Any, numpy: Any) -> Any:
    if hasattr(sample, "detach"):
        sample = sample.detach().cpu()
    if isinstance(sample, str | bytes | Mapping):
        return None
    try:
        array = numpy.asarray(sample)
    except ValueError:  # lists of different lengths
        return None
    return array if array.dtype.kind in "biufc" else None
