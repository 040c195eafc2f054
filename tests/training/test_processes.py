"""`processes=2` through the doors: what one process trains, and what is killed goes on.

`python test_processes.py FOLDER` trains through `train_model`, is interrupted, goes on, and is
killed; before that it prints its other process.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import first_door
import numpy as np
import psutil
import pytest
import torch
from first_door import Acting, Counting, stream

from superduper import training as model_suite
from superduper.errors import UserCodeError
from superduper.training.values import Exponential
from tests.waiting import until


def model_of(dropout: float = 0.0) -> model_suite.TorchModel:
    network = first_door.network()
    network[1].p = dropout  # type: ignore[index, assignment]
    return model_suite.TorchModel(
        network,
        torch.nn.Softmax(-1),
        torch.nn.CrossEntropyLoss(),
        torch.optim.AdamW,
        accumulate=3,
        clip=0.5,
        device="cpu",
    )


def train(
    processes: int | None,
    folder: Path | None = None,
    dropout: float = 0.5,
    acting: Acting | None = None,
) -> Any:
    model, counting = model_of(dropout), Counting()
    torch.manual_seed(0)
    model_suite.train_model(
        model,
        stream(),
        n_epochs=3,
        lr=Exponential(0.05, 0.5),
        weight_decay=0.1,
        checkpoints_path=folder,
        processes=processes,
        counting=counting,
        acting=acting or Acting(0, print),
    )
    return model.architecture.state_dict(), counting.rows


def test_two_processes_train_what_one_trains() -> None:
    one, rows = train(None, dropout=0.0)
    two, rows_of_two = train(2, dropout=0.0)
    assert all(torch.allclose(value, two[name], atol=1e-6) for name, value in one.items())
    assert [row[:2] for row in rows_of_two] == [[0, 7], [1, 7], [2, 7]]
    assert np.allclose(rows, rows_of_two)


def test_killed_they_end_and_it_goes_on_to_the_bit(tmp_path: Path) -> None:
    straight, rows = train(2)
    program = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    (other,) = map(int, done.stdout.split())
    until(lambda: not psutil.pid_exists(other), what="the end of the other process")
    assert (tmp_path / "checkpoint-8").exists()
    resumed, rows_resumed = train(2, tmp_path)
    assert rows_resumed == rows
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


class Loud(model_suite.TorchModel):
    def do_train_step(self, *inputs: Any, lr: float) -> Any:
        loss = super().do_train_step(*inputs, lr=lr)
        return float("nan") if 3.0 in inputs[0] else loss


def test_a_loss_that_is_no_number_in_another_process_names_the_records() -> None:
    model = Loud(
        torch.nn.Linear(1, 1),
        torch.nn.Identity(),
        torch.nn.MSELoss(),
        torch.optim.SGD,
        device="cpu",
    )
    ids = model_suite.load_by_random_id(
        lambda i: np.float32([i]), lambda i: np.float32([0]), ids=[3], random_state=0
    )
    batches = model_suite.Infinite(ids, batch_size=3, n_iters_per_epoch=2)
    with pytest.raises(UserCodeError, match=r"nan at step 1 .*, on the ids \[3, 3, 3\]"):
        model_suite.train_model(model, batches, 1, 0.01, processes=2)


class Generator(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = torch.nn.Linear(2, 2)
        self.discriminator = torch.nn.Linear(4, 1)

    def real(self, features: Any, boards: Any) -> Any:
        score = self.discriminator(torch.cat([features, boards], 1))
        return torch.nn.functional.logsigmoid(score)[:, 0]

    def fake(self, features: Any) -> Any:
        return self.real(features, self.generator(features))


class Adversaries(model_suite.Trainer):
    """Calls parts of its model by methods of their own, and goes backward twice in a step."""

    def train_batch(self, features: Any, boards: Any) -> Any:
        assert len(self.train_loader.dataset) == 35
        real = self.model.real(features, boards)
        self.optimizer.discriminator.zero_grad()
        (-real.mean()).backward()
        self.optimizer.discriminator.step()
        fake = self.model.fake(features)
        self.optimizer.generator.zero_grad()
        (-fake.mean()).backward()
        self.optimizer.generator.step()
        return {"real": real.sum(), "fake": fake.sum()}

    def evaluate_batch(self, features: Any, boards: Any) -> Any:
        return {"real": self.model.real(features, boards).sum()}


def test_a_trainer_of_two_optimizers_shares_its_batches(tmp_path: Path) -> None:
    histories, weights = [], []
    for processes in (None, 2):
        torch.manual_seed(1)
        data = torch.utils.data.TensorDataset(torch.randn(35, 2), torch.randn(35, 2))
        loader = torch.utils.data.DataLoader(data, 6, shuffle=True)  # the last batch has 5
        model = Generator()
        optimizer = model_suite.MultipleOptimizers(
            generator=torch.optim.Adam(model.generator.parameters(), 0.01),
            discriminator=torch.optim.SGD(model.discriminator.parameters(), 0.1),
        )
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer.discriminator, 1, 0.5)
        config = {"model_dir": str(tmp_path / str(processes)), "n_epochs": 2, "seed": 3}
        trainer = Adversaries(
            loader, loader, model, optimizer, {**config, "processes": processes},
            schedulers=[scheduler],
        )  # fmt: skip
        history = trainer.train()["history"]
        histories.append([{k: v for k, v in row.items() if k != "dur"} for row in history])
        weights.append(model.state_dict())
    for one, two in zip(*histories, strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def killed() -> None:
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contextlib.suppress(KeyboardInterrupt):
        train(2, Path(sys.argv[1]), acting=Acting(8, interrupted))
    train(2, Path(sys.argv[1]), acting=Acting(10, killed))
