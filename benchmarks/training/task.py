"""What every loop of `steps` trains: one linear layer on one set of random data, with a clock."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

BATCH = 32
EPOCHS = 3
LOG_STEPS = 50
LR = 0.05


class Clock:
    """Stands at the model's door and counts: the time from one forward pass to a later one."""

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.n = 0
        self._marks: list[tuple[float, float]] = []

    def tick(self) -> None:
        """A forward pass begins."""
        self.n += 1
        if self.n in (self.first, self.last):
            self._marks.append((time.process_time(), time.perf_counter()))

    def microseconds(self) -> tuple[float, float]:
        """CPU time and wall time per step."""
        (cpu, wall), (cpu_2, wall_2) = self._marks
        steps = self.last - self.first
        return (cpu_2 - cpu) / steps * 1e6, (wall_2 - wall) / steps * 1e6


class Model(torch.nn.Linear):
    """A linear layer that tells a clock of each training pass."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(64, 10)
        self.clock = clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores for a batch."""
        if self.clock is not None and self.training:
            self.clock.tick()
        return super().forward(x)


@dataclass
class Task:
    """Model, data and folder of one run; equal for all loops but for the clock."""

    steps: int
    clock: Clock
    folder: Path
    model: Model = field(init=False)
    x: torch.Tensor = field(init=False)
    y: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(self.steps * BATCH, 64, generator=generator)
        truth = torch.randn(64, 10, generator=generator)
        self.y = (self.x @ truth).argmax(1)
        torch.manual_seed(0)
        self.model = Model(self.clock)
        self.loss = torch.nn.CrossEntropyLoss()

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the model."""
        return torch.optim.SGD(self.model.parameters(), lr=LR)

    def loader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """The data in shuffled batches."""
        return DataLoader(TensorDataset(self.x, self.y), BATCH, shuffle=True)

    def final_loss(self) -> float:
        """What the loss over all data is in the end: that all have trained the same."""
        with torch.no_grad():
            return float(self.loss(self.model.eval()(self.x), self.y))
