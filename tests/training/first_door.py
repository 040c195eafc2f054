"""A training through `train_model` that can be stopped anywhere; run as a program it is killed.

`python first_door.py FOLDER STEP...` forks a process for each step, which trains in
`FOLDER/STEP` from the newest checkpoint on and kills itself after that step.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from superduper.training.policies import Policy
from superduper.training.stops import LossStop
from superduper.training.streams import Infinite, load_by_random_id
from superduper.training.torch_model import TorchModel
from superduper.training.train import train_model
from superduper.training.values import DecreasingOnPlateau, Exponential
from superduper.training.weights import weights_hash

N_EPOCHS, N_ITERS = 4, 7

Act = Callable[[], None]


class Counting(Policy):
    """A user's policy, which says nothing of its state."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.lowest = np.float64(np.inf)

    def epoch_finished(self, epoch: int, *, train_losses: Sequence[float]) -> None:
        self.lowest = min(self.lowest, np.mean(train_losses))
        self.rows.append([epoch, len(train_losses), float(self.lowest)])


class Acting(Policy):
    """Does something after some step of the training."""

    def __init__(self, at: int, act: Act) -> None:
        self.at = at
        self.act = act

    def step_finished(self, step: int) -> None:
        if step == self.at:
            self.act()


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def data() -> tuple[Any, Any]:
    x = np.random.RandomState(0).randn(60, 4)
    return x, (x.sum(1) > 0).astype(int)


def network(width: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, width), torch.nn.Dropout(0.4), torch.nn.Linear(width, 2)
    )


def stream(seed: int | None = 5, **settings: Any) -> Infinite:
    x, y = data()
    source = load_by_random_id(
        lambda i: x[i], lambda i: y[i], ids=range(60), random_state=seed, weights=range(60)
    )
    return Infinite(source, **{"batch_size": 8, "n_iters_per_epoch": N_ITERS, **settings})


class Plain:
    """A model without weights."""

    def __init__(self, loss: Any = 1.0) -> None:
        self.loss = loss
        self.given: list[Any] = []

    def do_train_step(self, *inputs: Any, **values: Any) -> Any:
        self.given.append(values)
        return self.loss


def model_of(**options: Any) -> TorchModel:
    return TorchModel(
        network(), torch.nn.Softmax(-1), torch.nn.CrossEntropyLoss(), torch.optim.SGD, **options
    )


def train(
    folder: Path | None,
    at: int = 0,
    act: Act = killed,
    *,
    batches: Any = None,
    model: TorchModel | None = None,
    n_epochs: int = N_EPOCHS,
) -> tuple[str, list[Any]]:
    """The hash of the weights in the end, and what a policy has noted of every epoch."""
    model = model or TorchModel(
        network(),
        torch.nn.Softmax(-1),
        torch.nn.CrossEntropyLoss(),
        torch.optim.AdamW,
        accumulate=3,
        clip=0.5,
        device="cpu",
    )
    counting = Counting()
    train_model(
        model,
        batches or stream(),
        n_epochs=n_epochs,
        lr=DecreasingOnPlateau(initial=0.05, multiplier=0.5, patience=0, rtol=0.2),
        weight_decay=Exponential(0.1, 0.5),
        checkpoints_path=folder,
        validate=lambda: {"mean": float(model.do_inf_step(data()[0])[:, 0].mean())},
        counting=counting,
        stop=LossStop(100),
        acting=Acting(at, act),
    )
    return weights_hash(model.architecture.state_dict()), counting.rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(None, n_epochs=1)  # what is imported late is then there for all
    for step in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            train(Path(sys.argv[1]) / step, int(step))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
