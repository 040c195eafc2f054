"""Everything at once through both doors, to be killed anywhere.

Two networks with an optimizer each, dropout, schedules, shuffling, augmentation, a loader's worker.

`python both_doors.py DOOR FOLDER STEP...` forks a process for each step, which trains in
`FOLDER/STEP` and kills itself after that step.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from superduper.training.multiple_optimizers import MultipleOptimizers
from superduper.training.policies import Policy
from superduper.training.train import train_model
from superduper.training.trainer import Trainer
from superduper.training.values import Exponential
from superduper.training.weights import weights_hash

N_EPOCHS, N_STEPS = 3, 6

Ended = tuple[str, list[Any]]


class Noisy(Dataset[Any]):
    """Records that are other ones each time they are asked for."""

    def __init__(self) -> None:
        self.x = torch.randn(44, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index]
        return x + 0.1 * torch.randn(4), (x.sum() > 0).long()


class Pair(torch.nn.Module):
    """Two networks, one behind the other, of which each has its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(0.4))
        self.head = torch.nn.Linear(6, 2)
        self.optimizers = MultipleOptimizers(
            encoder=torch.optim.AdamW(self.encoder.parameters(), 0.05),
            head=torch.optim.SGD(self.head.parameters(), 0.1, momentum=0.9),
        )

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.head(self.encoder(x)), y)
        self.optimizers.zero_grad()
        loss.backward()
        self.optimizers.step()
        return loss.detach()


class KillAt(Policy):
    def __init__(self, at: int) -> None:
        self.at = at

    def step_finished(self, step: int) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def loader() -> DataLoader[Any]:
    torch.manual_seed(1)  # of which `train_model` takes the seed of the order
    return DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=1)


class OfPair(Trainer):
    def train_batch(self, x: torch.Tensor, y: torch.Tensor) -> Mapping[str, Any]:
        return {"loss": self.model.step(x, y) * len(x)}

    def evaluate_batch(self, x: torch.Tensor, y: torch.Tensor) -> Mapping[str, Any]:
        return {"right": (self.model.head(self.model.encoder(x)).argmax(1) == y).sum()}


def through_trainer(folder: Path, at: int = 0) -> Ended:
    model = Pair()
    schedules = [
        torch.optim.lr_scheduler.ExponentialLR(model.optimizers.encoder, 0.7),
        torch.optim.lr_scheduler.StepLR(model.optimizers.head, 1, 0.5),
    ]
    config = {"model_dir": str(folder), "n_epochs": N_EPOCHS, "seed": 3, "checkpoint_interval": 2}
    config |= {"hash_data": False}
    made = OfPair(
        loader(), loader(), model, model.optimizers, config,
        schedulers=schedules, policies=[KillAt(at)],
    )  # fmt: skip
    history = made.train()["history"]
    rows = [{name: value for name, value in row.items() if name != "dur"} for row in history]
    return weights_hash(model.state_dict()), rows


class Stepping:
    """What `train_model` needs of a model: a step, and attributes with networks and optimizers."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.encoder = self.pair.optimizers.encoder
        self.head = self.pair.optimizers.head

    def do_train_step(self, x: torch.Tensor, y: torch.Tensor, lr: float, momentum: float) -> Any:
        self.encoder.param_groups[0]["lr"] = lr
        self.head.param_groups[0]["momentum"] = momentum
        return self.pair.step(x, y)


class Noting(Policy):
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def epoch_finished(self, epoch: int, train_losses: Any, metrics: Any) -> None:
        self.rows.append([epoch, [float(loss) for loss in train_losses], dict(metrics)])


def through_train_model(folder: Path, at: int = 0) -> Ended:
    model, noting = Stepping(), Noting()
    train_model(
        model,
        loader(),
        n_epochs=N_EPOCHS,
        lr=Exponential(0.05, 0.7),
        momentum=Exponential(0.9, 0.8),
        checkpoints_path=folder,
        validate=lambda: {"norm": float(model.pair.head.weight.detach().norm())},
        noting=noting,
        kill=KillAt(at),
    )
    return weights_hash(model.pair.state_dict()), noting.rows


DOORS = {"Trainer": through_trainer, "train_model": through_train_model}


if __name__ == "__main__":
    torch.set_num_threads(1)
    Pair()  # what torch imports for its first optimizer is then there for all
    for step in sys.argv[3:]:
        child = os.fork()
        if child == 0:
            DOORS[sys.argv[1]](Path(sys.argv[2]) / step, int(step))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
