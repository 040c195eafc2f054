"""What `train_model` was stopped in, it goes on with as if nothing had been."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import first_door
import numpy as np
import pytest
import torch
from first_door import N_EPOCHS, N_ITERS, data, network, stream, train

from superduper.errors import InvalidInput, NotReady
from superduper.training.epoch_logs import TensorBoardLogger
from superduper.training.policies import EarlyStopping, Policy
from superduper.training.streams import Infinite
from superduper.training.torch_model import TorchModel
from superduper.training.train import train_model
from tests.small_disk import small_disk

STEPS = N_EPOCHS * N_ITERS


class Stopped(Exception):
    pass


def stop() -> None:
    raise Stopped


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def straight() -> tuple[str, list[Any]]:
    """The training that never stopped."""
    return train(None)


def test_two_trainings_are_equal_and_use_everything_random(straight: tuple[str, Any]) -> None:
    assert train(None) == straight
    assert train(None, batches=stream(seed=6))[0] != straight[0]


def test_killed_at_random_steps_it_ends_with_the_same_weights(
    tmp_path: Path, straight: tuple[str, Any]
) -> None:
    steps = random.sample(range(1, STEPS + 1), 5)
    program = [sys.executable, first_door.__file__, str(tmp_path), *map(str, steps)]
    # It forks after a first training, which torch refuses where it sees a GPU.
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(program, check=True, env={**os.environ, **alone})
    for step in steps:
        assert train(tmp_path / str(step)) == straight, f"killed at step {step}"


@pytest.mark.parametrize("at", [1, 6, 7, 8, 10, 21])
def test_ctrl_c_saves_the_step_it_is_at_and_says_how_to_go_on(
    at: int, tmp_path: Path, straight: tuple[str, Any]
) -> None:
    with pytest.raises(KeyboardInterrupt, match=rf"after step {at}, .*; train again to go on"):
        train(tmp_path, at, interrupt)
    assert f"checkpoint-{at}" in os.listdir(tmp_path)
    assert train(tmp_path) == straight


def test_the_same_objects_can_go_on(tmp_path: Path, straight: tuple[str, Any]) -> None:
    model = TorchModel(
        network(),
        torch.nn.Softmax(-1),
        torch.nn.CrossEntropyLoss(),
        torch.optim.AdamW,
        accumulate=3,
        clip=0.5,
        device="cpu",
    )
    batches = stream()
    for at, act in ((9, stop), (12, interrupt)):
        with pytest.raises((Stopped, KeyboardInterrupt)):
            train(tmp_path, at, act, batches=batches, model=model)
    assert train(tmp_path, batches=batches, model=model) == straight


def test_a_stream_without_a_seed_goes_on_with_the_one_it_had(tmp_path: Path) -> None:
    first, second = stream(seed=None), stream(seed=None)
    seed = first.source.seed  # type: ignore[attr-defined]
    assert seed != second.source.seed  # type: ignore[attr-defined]
    with pytest.raises(Stopped):
        train(tmp_path, 10, stop, batches=first)
    assert train(tmp_path, batches=second) == train(None, batches=stream(seed=seed))


def test_a_loader_in_random_order_goes_on_within_an_epoch(tmp_path: Path) -> None:
    x, y = data()
    records = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))

    def loader() -> Any:
        torch.manual_seed(3)
        return torch.utils.data.DataLoader(records, batch_size=16, shuffle=True)

    straight = train(None, batches=loader())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 6, interrupt, batches=loader())
    assert train(tmp_path, batches=loader()) == straight


def test_a_finished_training_trains_nothing_more_and_can_be_made_longer(
    tmp_path: Path, straight: tuple[str, Any]
) -> None:
    train(tmp_path, n_epochs=2)

    def refuse() -> None:
        raise AssertionError("a step was made")

    again, _ = train(tmp_path, 2 * N_ITERS + 1, refuse, n_epochs=2)
    assert train(tmp_path, n_epochs=2)[0] == again
    assert train(tmp_path) == straight


def test_one_that_a_policy_ended_trains_nothing_more(tmp_path: Path) -> None:
    epochs: list[int] = []

    class Ending(Policy):
        def epoch_started(self, epoch: int) -> None:
            epochs.append(epoch)

        def epoch_finished(self, epoch: int) -> None:
            if epoch == 1:
                raise EarlyStopping

    for _ in range(2):
        model = TorchModel(network(), abs, torch.nn.CrossEntropyLoss(), torch.optim.SGD)
        train_model(model, stream(), 5, 0.1, checkpoints_path=tmp_path, end=Ending())
    assert epochs == [0, 1]


def test_the_newest_stay_and_with_a_frequency_some_for_good(tmp_path: Path) -> None:
    for name, frequency in (("few", None), ("some", 2)):
        model = TorchModel(network(), abs, torch.nn.CrossEntropyLoss(), torch.optim.SGD)
        path = tmp_path / name
        train_model(model, stream(), 5, 0.1, checkpoints_path=path, frequency=frequency)
    assert sorted(os.listdir(tmp_path / "few")) == ["checkpoint-28", "checkpoint-35"]
    kept = ["checkpoint-14", "checkpoint-28", "checkpoint-35"]
    assert sorted(os.listdir(tmp_path / "some")) == kept


def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, straight: tuple[str, Any]
) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, 16, stop)
    newest = tmp_path / "checkpoint-14" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert train(tmp_path) == straight


def test_a_checkpoint_of_another_model_is_refused_with_both_hashes(tmp_path: Path) -> None:
    train(tmp_path, n_epochs=1)
    other = TorchModel(network(9), abs, torch.nn.CrossEntropyLoss(), torch.optim.AdamW)
    with pytest.raises(InvalidInput, match=r"of another model: .*[0-9a-f]{64}.*[0-9a-f]{64}"):
        train(tmp_path, model=other)


def test_a_checkpoint_of_other_data_is_refused_with_both_hashes(tmp_path: Path) -> None:
    train(tmp_path, n_epochs=1)
    batches = stream()
    batches.source.ids.append(60)  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match=r"of another data: .*[0-9a-f]{64}.*[0-9a-f]{64}"):
        train(tmp_path, batches=batches)


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, straight: tuple[str, Any]
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        with pytest.raises(NotReady, match="No space left on device.*make room and train again"):
            train(disk.path, N_ITERS + 2, disk.fill)
        assert [path.name for path in disk.path.glob("*-*")] == [f"checkpoint-{N_ITERS}"]
        disk.free()
        assert train(disk.path) == straight


def test_a_log_on_a_full_disk_is_told_of(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        logs = disk.path / "logs"
        log = TensorBoardLogger(logs)
        log.epoch_finished(0, [1.0])
        disk.fill()
        with pytest.raises(NotReady, match=f"{logs} could not be written: .*No space left"):
            for epoch in range(1, 1000):  # what is left of the file's last block is filled first
                log.epoch_finished(epoch, [1.0])
        with pytest.raises(NotReady, match=f"{logs} could not be written"):
            log.close()
        log.close()


def test_a_source_that_cannot_go_back_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def items() -> Any:
        x, y = data()
        while True:
            yield from zip(x, y, strict=True)

    straight = train(None, batches=Infinite(items(), batch_size=8, n_iters_per_epoch=7))
    with pytest.raises(Stopped):
        train(tmp_path, 9, stop, batches=Infinite(items(), batch_size=8, n_iters_per_epoch=7))
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    fresh = Infinite(items(), batch_size=8, n_iters_per_epoch=7)
    assert train(tmp_path, batches=fresh) == straight
    with caplog.at_level(logging.WARNING):
        train(tmp_path.with_name("copy"), batches=fresh)
    assert "the source cannot go back" in caplog.text
    assert np.isfinite(fresh.position)
