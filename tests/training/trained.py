"""A small model, data and settings for the trainer's tests."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset


class Classifier(torch.nn.Module):
    """Answers a distribution over two classes."""

    def __init__(self, dropout: float = 0.0, width: int = 8) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, width),
            torch.nn.ReLU(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(width, 2),
        )

    def forward(self, features: torch.Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Categorical(logits=self.layers(features), validate_args=False)


def data(n: int = 70, seed: int = 0) -> TensorDataset:
    features = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(features, (features.sum(1) > 0).long())


def parts(dropout: float = 0.0, n: int = 70, workers: int = 0, **optimizer: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    model = Classifier(dropout)
    return {
        "train_loader": DataLoader(data(n), batch_size=16, shuffle=True, num_workers=workers),
        "validate_loader": DataLoader(data(30, 9), batch_size=16),
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=0.01, **optimizer),
    }


def config(folder: Path, **more: Any) -> dict[str, Any]:
    return {"model_dir": str(folder / "run"), "seed": 5, "n_epochs": 3, **more}


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's history without the times."""
    return [{k: v for k, v in row.items() if k != "dur"} for row in record["history"]]
