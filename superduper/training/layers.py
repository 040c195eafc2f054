"""Layers that architectures of the examples are made of."""

from collections.abc import Callable

import torch


class PyramidPooling(torch.nn.Module):
    """Pools images of any size into a row of fixed length: all of it, then halves, quarters...

    `pooling(x, kernel_size, stride)` is such as `torch.nn.functional.max_pool2d`. One level is
    global pooling; a level more divides each axis into twice as many parts.
    """

    def __init__(self, pooling: Callable[..., torch.Tensor], levels: int = 1) -> None:
        super().__init__()
        self.pooling = pooling
        self.levels = levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One row for each image of the batch."""
        rows = []
        for level in range(self.levels):
            parts = 2**level
            kernel = tuple(-(-size // parts) for size in x.shape[2:])
            stride = tuple(max(size // parts, 1) for size in x.shape[2:])
            rows.append(self.pooling(x, kernel_size=kernel, stride=stride).flatten(1))
        return torch.cat(rows, dim=1)
