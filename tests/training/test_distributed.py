"""Two processes train as one does with the same batches, and go on to the bit after a stop."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from superduper.errors import InvalidInput, UserCodeError
from superduper.training.batch_parts import part_of
from superduper.training.checkpoints import Checkpoints
from superduper.training.distributed import GroupEngine
from superduper.training.engine import Engine, Plan, Stage
from superduper.training.graph import Graph, Node
from superduper.training.group import Group, leading, several
from superduper.training.objective import Objective, Term
from superduper.training.optimizers import optimizer_of
from superduper.training.policies import Policy, StopRun
from superduper.training.sources import tensor_source
from superduper.training.weights import copy_of_state

# Batches of 7 are shared 3 to 4; of the last one, of one record, one process has none.
BATCH, RECORDS, EPOCHS = 7, 36, 3
CPU = torch.device("cpu")


def plan_of(dropout: float = 0.0, reduction: str = "mean") -> tuple[Plan, torch.nn.Module]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(RECORDS, 4, generator=generator)
    y = (x.sum(1) > 0).long()
    torch.manual_seed(1)
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 2)
    )
    graph = Graph([Node("model", module, ("x",), ("output",))])
    loss = torch.nn.CrossEntropyLoss(reduction=reduction)
    source = tensor_source({"x": x, "y": y}, BATCH, seed=2)
    stage = Stage(
        graph,
        Objective([Term("loss", loss, ("output", "y"), weight=0.5)]),
        source,
        {"main": optimizer_of("adam", graph.parameters(), 0.05)},
        validation=tensor_source({"x": x, "y": y}, BATCH),
        max_epochs=EPOCHS,
    )
    return Plan([stage], 3), module


class Slower(Policy):
    """Halves the learning rate after every epoch: only the leader knows of it."""

    def epoch_finished(self, engine: Engine) -> None:
        for group in engine.stage.optimizers["main"].param_groups:
            group["lr"] /= 2


class Rows(Policy):
    """Keeps what an epoch measured."""

    def __init__(self) -> None:
        self.rows: list[float] = []

    def epoch_finished(self, train: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        self.rows += [train["loss"], metrics["loss"]]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = list(state["rows"])


class SaveAt(Policy):
    """Saves within an epoch; what was trained after that is lost, as by a kill."""

    def __init__(self, checkpoints: Checkpoints, at: int) -> None:
        self.checkpoints = checkpoints
        self.at = at

    def step_finished(self, engine: Engine, step: int) -> None:
        if step == self.at:
            self.checkpoints.save(step, engine.state_dict())


class StopAt(Policy):
    def __init__(self, at: int) -> None:
        self.at = at

    def step_finished(self, step: int) -> None:
        if step == self.at:
            raise StopRun


def kept(path: Path, module: torch.nn.Module, rows: Rows) -> None:
    save_file({**copy_of_state(module), "rows": torch.tensor(rows.rows)}, path)


def alone(path: Path, reduction: str) -> None:
    (plan, module), rows = plan_of(reduction=reduction), Rows()
    Engine(plan, [Slower(), rows]).run()
    kept(path, module, rows)


def together(group: Group, folder: str) -> None:
    """All the runs of this module, in one group: a process with torch takes its time to start."""
    for reduction in ("mean", "sum"):
        (plan, module), rows = plan_of(reduction=reduction), Rows()
        GroupEngine(plan, [Slower(), rows], group).run()
        kept(Path(folder, f"{reduction} {group.rank}"), module, rows)
    (plan, module), rows = plan_of(dropout=0.5), Rows()
    GroupEngine(plan, [Slower(), rows], group).run()
    kept(Path(folder, f"straight {group.rank}"), module, rows)
    _killed_and_resumed(group, folder)


def _killed_and_resumed(group: Group, folder: str) -> None:
    checkpoints = Checkpoints(Path(folder) / "checkpoints")
    plan, _ = plan_of(dropout=0.5)
    GroupEngine(plan, [Slower(), Rows(), SaveAt(checkpoints, 8), StopAt(9)], group).run()
    (plan, module), rows = plan_of(dropout=0.5), Rows()
    engine = GroupEngine(plan, [Slower(), rows, SaveAt(checkpoints, -1), StopAt(-1)], group)
    state = checkpoints.latest() if group.leads else None
    if state is not None:
        engine.load_state_dict(state)
    engine.run()
    kept(Path(folder, f"resumed {group.rank}"), module, rows)


def broken(group: Group) -> None:
    raise ZeroDivisionError("mine")


def gone(group: Group) -> None:
    print("last words", flush=True)
    os._exit(3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("group")
    with leading(2, CPU, together, str(folder)) as group:
        together(group, str(folder))
    return folder


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_processes_train_what_one_trains_with_the_same_batches(
    runs: Path, tmp_path: Path, reduction: str
) -> None:
    alone(tmp_path / "alone", reduction)
    one, first, second = (
        load_file(path)
        for path in (tmp_path / "alone", runs / f"{reduction} 0", runs / f"{reduction} 1")
    )
    assert len(one["rows"]) == 2 * EPOCHS and len(second["rows"]) == 0
    assert one["rows"][-1] < one["rows"][1]
    for name, value in one.items():
        assert torch.allclose(first[name], value, atol=1e-5), name
        if name != "rows":
            assert torch.equal(first[name], second[name])


def test_a_group_that_was_stopped_within_an_epoch_goes_on_to_the_bit(runs: Path) -> None:
    straight, resumed = load_file(runs / "straight 0"), load_file(runs / "resumed 0")
    assert len(straight["rows"]) == 2 * EPOCHS
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


@pytest.mark.parametrize(
    ("help", "told"), [(broken, "ZeroDivisionError: mine"), (gone, "ended with 3: .*last words")]
)
def test_what_one_process_fails_of_is_raised(help: Any, told: str) -> None:
    threads = torch.get_num_threads()
    with (
        pytest.raises(UserCodeError, match=rf"(?s)process 1 .*{told}"),
        leading(2, CPU, help) as group,
    ):
        group.receive(1)
    assert torch.get_num_threads() == threads
    assert not torch.distributed.is_initialized()


def test_a_part_of_a_batch_has_some_rows_of_all_that_has_rows() -> None:
    batch = {
        "x": torch.arange(5),
        "batch": (numpy.arange(10).reshape(5, 2), [*"abcde"], 7, torch.tensor(3.0), {"n": [1, 2]}),
    }
    part = part_of(batch, 5, 3, 5)
    array, letters, number, scale, others = part["batch"]
    assert part["x"].tolist() == [3, 4] and array.tolist() == [[6, 7], [8, 9]]
    assert (letters, number, float(scale), others) == (["d", "e"], 7, 3.0, {"n": [1, 2]})


def test_what_cannot_be_shared_is_refused() -> None:
    plan, module = plan_of()
    group = Group(0, 2, CPU, None)
    search = {"main": torch.optim.LBFGS(module.parameters())}
    stage = replace(plan.stages[0], optimizers=search)
    with pytest.raises(InvalidInput, match="LBFGS cannot be shared"):
        GroupEngine(Plan([stage], 0), [], group)
    for processes in (0, True, 1.5, "2"):
        with pytest.raises(InvalidInput, match="whole number of at least 1"):
            several(processes)  # type: ignore[arg-type]
    with (
        open("/dev/null") as file,
        pytest.raises(InvalidInput, match="cannot be sealed: open it"),
        leading(2, CPU, together, file),
    ):
        pass
