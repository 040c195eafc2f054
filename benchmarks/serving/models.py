"""The models that every server answers for: a small one, and one of some milliseconds.

The third takes as many floats as a small picture has, and is for our own server's bodies.
"""

import torch

DIM = 64
ROW = [round(0.01 * n, 4) for n in range(DIM)]
SIZES = {"A": (DIM, 128, 10), "C": (DIM, 2048, 2048, 2048, 10)}
PICTURE = {"picture": (3 * 64 * 64, 10)}


class Mlp(torch.nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[torch.nn.Module] = []
        for given, made in zip(sizes, sizes[1:], strict=False):
            layers += [torch.nn.Linear(given, made), torch.nn.ReLU()]
        self.layers = torch.nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores for a batch."""
        return self.layers(x)
