"""Pictures of what a run's model predicts, as PNG files and one HTML page."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from superduper.errors import InvalidInput, MissingExtra
from superduper.training.predictions import Predicted, predict
from superduper.training.run_folder import RunFolder, load_epoch, write_whole

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtra.of("charts", "drawing what a model predicts") from error

_GRID = 25
_FEATURES = 12
_POINTS = 20
_RECORDS = 2_000


def visualize(
    model_dir: str | Path,
    model: torch.nn.Module,
    data: Any,
    epoch: int | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Draw what the model of an epoch (the last one) predicts for records of `(features, label)`.

    Whole-number labels are classes: a confusion matrix; others are values: a scatter. Images are
    shown with predicted and true value; of tables, how the prediction depends on each feature.
    `names` are those of the features. Up to 2,000 records are read. Answers the HTML page, in
    `charts/` of the run's folder.
    """
    if len(data) == 0:
        raise InvalidInput("there are no records to draw")
    folder = RunFolder(model_dir)
    origin = load_epoch(folder.path, model, epoch)
    features, labels = _records(data)
    predicted = _with_classes(predict(model, features), labels)
    target = folder.path / "charts"
    target.mkdir(exist_ok=True)
    stem = f"epoch{origin['epoch']:03}"
    pictures: dict[str, bytes] = {}
    for name, figure in _figures(model, features, labels, predicted, names):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        pictures[name] = buffer.getvalue()
        write_whole(target / f"{stem}-{name.replace(' ', '-')}.png", pictures[name])
    page = target / f"{stem}.html"
    write_whole(page, _page(f"{folder.path.name}, epoch {origin['epoch']}", pictures).encode())
    return page


def _records(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The features and labels of evenly spread records."""
    step = -(-len(data) // _RECORDS)
    records = [data[number] for number in range(0, len(data), step)]
    if not all(isinstance(record, list | tuple) and len(record) == 2 for record in records):
        raise InvalidInput("only records of one features tensor and one label can be drawn")
    pairs = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in records]
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def _with_classes(predicted: Predicted, labels: torch.Tensor) -> Predicted:
    """A tensor of a score per class, where labels are classes, read as such."""
    scores = predicted.values
    if labels.is_floating_point() or predicted.probabilities is not None or scores.ndim != 2:
        return predicted
    return Predicted(scores.argmax(1), scores.softmax(1))


def _figures(
    model: torch.nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    predicted: Predicted,
    names: Sequence[str] | None,
) -> Iterator[tuple[str, Figure]]:
    if predicted.probabilities is not None:
        yield "confusion matrix", _confusion(predicted.values, labels.long())
    else:
        yield "predicted and true", _scatter(predicted.values, labels)
    if features.ndim in (3, 4):
        yield "predictions", _images(features, labels, predicted.values)
    elif features.ndim == 2 and features.is_floating_point():
        named = names or [f"feature {number}" for number in range(features.shape[1])]
        yield "partial dependence", _dependence(model, features, named)


def _confusion(predicted: torch.Tensor, true: torch.Tensor) -> Figure:
    size = int(max(predicted.max(), true.max())) + 1
    counts = torch.bincount(true.flatten() * size + predicted.flatten(), minlength=size * size)
    matrix = counts.view(size, size)
    figure = Figure(figsize=(max(4, size * 0.6),) * 2, layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix.numpy(), cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true", xticks=range(size), yticks=range(size))
    middle = float(matrix.max()) / 2
    for row in range(size):
        for column in range(size):
            count = int(matrix[row, column])
            colour = "white" if count > middle else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    return figure


def _scatter(predicted: torch.Tensor, true: torch.Tensor) -> Figure:
    if predicted.numel() != true.numel():
        raise InvalidInput(
            f"predictions of shape {tuple(predicted.shape)} cannot be compared with labels of "
            f"shape {tuple(true.shape)}"
        )
    x, y = true.flatten().float(), predicted.flatten().float()
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([low, high], [low, high], color="grey", linewidth=1)
    axes.scatter(x.numpy(), y.numpy(), s=8, alpha=0.5)
    axes.set(xlabel="true", ylabel="predicted")
    return figure


def _images(features: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor) -> Figure:
    shown = features[:_GRID].float()
    figure = Figure(figsize=(9, 10), layout="constrained")
    grid = figure.subplots(5, 5)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, label, value in zip(grid.flat, shown, labels, predicted, strict=False):
        pixels = image.movedim(0, -1) if image.ndim == 3 else image
        if pixels.ndim == 3 and pixels.shape[-1] != 3:
            pixels = pixels.mean(-1)
        low, high = pixels.min(), pixels.max()
        axes.imshow(((pixels - low) / (high - low).clamp(min=1e-9)).numpy(), cmap="gray")
        right = bool((value == label).all())
        text = f"predicted {_short(value)}\ntrue {_short(label)}"
        axes.set_title(text, fontsize=8, color="green" if right else "red")
    return figure


def _short(value: torch.Tensor) -> str:
    listed = value.flatten().tolist()
    return ", ".join(f"{each:.3g}" for each in listed[:3])


def _dependence(model: torch.nn.Module, features: torch.Tensor, names: Sequence[str]) -> Figure:
    """The mean prediction over all records while one feature is set to a value."""
    count = min(features.shape[1], _FEATURES)
    rows = -(-count // 3)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, sharey=True, squeeze=False)
    for axes in list(grid.flat)[count:]:
        axes.set_axis_off()
    for number, axes in zip(range(count), grid.flat, strict=False):
        values = torch.linspace(*_range(features[:, number]), _POINTS)
        curves = torch.stack([_mean_with(model, features, number, each) for each in values])
        axes.plot(values.numpy(), curves.numpy())
        axes.set_xlabel(names[number])
    curves_drawn = grid[0][0].get_lines()
    if len(curves_drawn) > 1:
        labels = [f"class {number}" for number in range(len(curves_drawn))]
        figure.legend(curves_drawn, labels, loc="outside upper center", ncols=5)
    return figure


def _range(column: torch.Tensor) -> tuple[float, float]:
    """Where nearly all values lie: a few outliers would leave nothing to see."""
    low, high = torch.quantile(column.float(), torch.tensor([0.02, 0.98])).tolist()
    return low, high


def _mean_with(
    model: torch.nn.Module, features: torch.Tensor, number: int, value: torch.Tensor
) -> torch.Tensor:
    changed = features.clone()
    changed[:, number] = value
    predicted = predict(model, changed)
    shown = predicted.values if predicted.probabilities is None else predicted.probabilities
    return shown.float().mean(0).flatten()


def _page(title: str, pictures: dict[str, bytes]) -> str:
    parts = [
        f"<h2>{html.escape(name)}</h2>\n"
        f'<img alt="{html.escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for name, picture in pictures.items()
    ]
    heading = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{heading}</title>\n'
        f"<body><h1>{heading}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
