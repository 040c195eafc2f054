"""What a finished run predicts is drawn."""

import importlib
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from trained import Classifier, config, data, parts

from superduper import training
from superduper.errors import InvalidInput

pytest.importorskip("matplotlib")
visualize = importlib.import_module("superduper.training.charts").visualize


class Regression(torch.nn.Module):
    """Answers a normal distribution of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, features: torch.Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Normal(self.layer(features).squeeze(1), 1.0)


class Images(torch.nn.Module):
    """Answers scores of three classes, as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


class ImageTrainer(training.Trainer):
    def train_batch(self, images: Any, labels: Any) -> Any:
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss * len(labels)}

    def evaluate_batch(self, images: Any, labels: Any) -> Any:
        return {"loss": torch.nn.functional.cross_entropy(self.model(images), labels) * len(labels)}


def trained(folder: Path, model: torch.nn.Module, records: TensorDataset, kind: Any) -> None:
    loader = DataLoader(records, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    kind(loader, loader, model, optimizer, config(folder, n_epochs=1)).train()


def pngs(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.glob("*.png")):
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        found[path.name] = struct.unpack(">II", content[16:24])
    return found


def test_classes_are_drawn(tmp_path: Path) -> None:
    training.Trainer(**parts(), config=config(tmp_path, n_epochs=2)).train()
    page = visualize(tmp_path / "run", Classifier(), data(30, 9), epoch=1)
    assert list(pngs(page.parent)) == [
        "epoch001-confusion-matrix.png",
        "epoch001-partial-dependence.png",
    ]
    assert all(min(size) >= 300 for size in pngs(page.parent).values())
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2 and "epoch 1" in text


def test_numbers_are_drawn(tmp_path: Path) -> None:
    features = torch.randn(40, 3)
    records = TensorDataset(features, features.sum(1))
    trained(tmp_path, Regression(), records, training.Trainer)
    page = visualize(tmp_path / "run", Regression(), records, names=["age", "size", "weight"])
    assert list(pngs(page.parent)) == [
        "epoch001-partial-dependence.png",
        "epoch001-predicted-and-true.png",
    ]


def test_images_are_drawn_with_predicted_and_true(tmp_path: Path) -> None:
    records = TensorDataset(torch.rand(30, 1, 8, 8), torch.arange(30) % 3)
    trained(tmp_path, Images(), records, ImageTrainer)
    page = visualize(tmp_path / "run", Images(), records)
    assert list(pngs(page.parent)) == ["epoch001-confusion-matrix.png", "epoch001-predictions.png"]
    with pytest.raises(InvalidInput, match="no records"):
        visualize(tmp_path / "run", Images(), [])
