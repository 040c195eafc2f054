"""The model of the classification example, and the values that come out of any."""

from typing import Any

import torch

LABELS = ["cat", "dog", "fish"]


class MyModel(torch.nn.Module):
    """The model of the classification example."""

    def __init__(self, labels: list[str], dim: int) -> None:
        super().__init__()
        self.labels = labels
        self.layer = torch.nn.Linear(dim, len(self.labels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def postprocess(self, output: torch.Tensor) -> str:
        estimate = output.topk(1)[1].item()
        return self.labels[int(estimate)]


def values(outcomes: list[dict[str, Any]]) -> list[Any]:
    failed = [outcome["error"]["message"] for outcome in outcomes if "error" in outcome]
    assert not failed, failed
    return [outcome["value"] for outcome in outcomes]
