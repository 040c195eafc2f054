"""A checkpoint is whole or not there, and a run that goes on from it ends as if never stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from superduper.errors import InvalidInput
from superduper.training.checkpoints import Checkpointing, Checkpoints
from superduper.training.engine import Engine, Plan, Stage
from superduper.training.graph import Graph, Node
from superduper.training.objective import Objective, Term
from superduper.training.optimizers import optimizer_of
from superduper.training.policies import BestWeights, Patience, Policy
from superduper.training.sources import tensor_source
from superduper.training.weights import weights_hash

STATE: dict[str, Any] = {
    "text": "a",
    "numbers": [1, 2.5, None, True],
    "tuple": (1, (torch.arange(3), "b")),
    "by number": {0: {"momentum": torch.full((2,), 1.5)}, 1: {}},
    "scalar": torch.tensor(3, dtype=torch.int64),
}


class Killed(Policy):
    """Ends this process without a word after some step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step_finished(self, step: int) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path | None, killed_at: int = 0) -> str:
    """Train with dropout and a shuffled order, from the newest checkpoint on; the weights' hash."""
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    data = {"x": x, "y": (x.sum(1) > 0).long()}
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Dropout(0.4), torch.nn.Linear(8, 2)
    )
    graph = Graph([Node("model", module, ("x",), ("output",))])
    stage = Stage(
        graph=graph,
        objective=Objective([Term("loss", torch.nn.CrossEntropyLoss(), ("output", "y"))]),
        source=tensor_source(data, 16, seed=5),
        optimizers={"main": optimizer_of("adamw", graph.parameters(), 0.01)},
        validation=tensor_source(data, 32),
        max_epochs=4,
    )
    policies: list[Policy] = [BestWeights("loss", False), Patience("loss", False, 50)]
    checkpoints = Checkpoints(folder) if folder is not None else None
    if checkpoints is not None:
        policies += [Checkpointing(checkpoints, every_steps=3)]
    engine = Engine(Plan([stage], 5), [*policies, Killed(killed_at)])
    state = checkpoints.latest() if checkpoints is not None else None
    if state is not None:
        engine.load_state_dict(state)
    engine.run()
    return weights_hash(module.state_dict())


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(3, STATE)
    state = Checkpoints(tmp_path).latest()
    assert state is not None
    assert repr(state) == repr(STATE)
    assert state["by number"][0]["momentum"].dtype == torch.float32
    assert sorted(path.name for path in (tmp_path / "checkpoint-3").iterdir()) == [
        "manifest.json",
        "state.json",
        "tensors.safetensors",
    ]


def test_the_newest_stay_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (9, 10, 11):
        checkpoints.save(step, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]
    assert checkpoints.latest() == {"step": 11}
    (tmp_path / "checkpoint-11" / "state.json").write_text(json.dumps({"step": 12}))
    assert checkpoints.latest() == {"step": 10}
    (tmp_path / "checkpoint-10" / "manifest.json").unlink()
    with pytest.raises(InvalidInput, match="are all damaged, and there is nothing to go on from"):
        checkpoints.latest()


def test_a_damaged_one_is_not_counted_when_the_run_has_gone_on_from_before_it(
    tmp_path: Path,
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20):
        checkpoints.save(step, {"step": step})
    (tmp_path / "checkpoint-20" / "state.json").unlink()
    assert checkpoints.latest() == {"step": 10}
    for step in (12, 14):
        checkpoints.save(step, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-14"]


def test_what_is_left_of_a_save_that_was_broken_off_does_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    with pytest.raises(InvalidInput, match="/a/1 is a object: a state is made of tensors"):
        checkpoints.save(2, {"a": [1, object()]})
    assert checkpoints.latest() == {"step": 1}
    checkpoints.save(2, {"step": 2})
    assert checkpoints.latest() == {"step": 2}


def test_a_run_killed_twice_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    straight = train(None)
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from test_checkpoints import train; train(Path(sys.argv[2]), int(sys.argv[3]))"
    )
    here = str(Path(__file__).parent)
    for step in (4, 11):
        command = [sys.executable, "-c", program, here, str(tmp_path), str(step)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert train(tmp_path) == straight
    assert train(tmp_path) == straight  # a finished run trains nothing more


def test_a_run_goes_on_from_any_step(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    class Stopping(Killed):
        def step_finished(self, step: int) -> None:
            if step == self.at:
                raise Stopped

    straight = train(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "Killed", Stopping)
        for step in (1, 4, 6, 11, 16):
            folder = tmp_path / str(step)
            with pytest.raises(Stopped):
                train(folder, step)
            assert train(folder) == straight
