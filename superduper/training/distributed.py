"""One training in several processes, each with a GPU of its own or a part of the CPUs: torch's DDP.

    def train(group):
        GroupEngine(make_plan(group.device), policies, group).run()

    in_group(train, processes=2)

Every process has the plan; the first one leads. It alone has policies, validates and saves. Before
each step it tells the others where it is and how its optimizers are set; they compute their shares
of that batch, and DDP averages the gradients. So a policy need not know of any of this, and
whatever ends the run ends it for all.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from superduper.errors import InvalidInput
from superduper.training.checkpoints import packed, unpacked
from superduper.training.engine import Engine, Plan, Stage
from superduper.training.graph import Graph, Node
from superduper.training.metrics import Means
from superduper.training.objective import Objective, StepResult
from superduper.training.policies import Policy
from superduper.training.randomness import seed_everything
from superduper.training.sources import Batch, IndexSource

# The others wait while the leader validates, however long that takes.
_PATIENCE = timedelta(days=7)

_HEADER = 8  # bytes that say where a word's plain part ends


@dataclass(frozen=True)
class Group:
    """The processes of a training, and which of them this is."""

    rank: int
    size: int
    device: torch.device
    #: On CPUs, for words: they need not wait for what a GPU is computing.
    words: Any

    @property
    def leads(self) -> bool:
        """Whether this is the process that has the policies."""
        return self.rank == 0

    def told(self, word: Any = None) -> Any:
        """What the leader says; in the leader, say it. A word is what a checkpoint can hold."""
        content = _written(word) if self.leads else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(content)])
        distributed.broadcast(length, src=0, group=self.words)
        if not self.leads:
            content = torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(content, src=0, group=self.words)
        return word if self.leads else _read(content)

    def collected(self, word: Any) -> list[Any]:
        """What every other process says, in the leader; in the others, say it."""
        if not self.leads:
            content = _written(word)
            distributed.send(torch.tensor([len(content)]), dst=0, group=self.words)
            distributed.send(content, dst=0, group=self.words)
            return []
        return [self._heard(rank) for rank in range(1, self.size)]

    def _heard(self, rank: int) -> Any:
        length = torch.tensor([0])
        distributed.recv(length, src=rank, group=self.words)
        content = torch.empty(int(length), dtype=torch.uint8)
        distributed.recv(content, src=rank, group=self.words)
        return _read(content)


def _written(word: Any) -> torch.Tensor:
    plain, tensors = packed(word)
    content = len(plain).to_bytes(_HEADER, "little") + plain + tensors
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _read(content: torch.Tensor) -> Any:
    data = content.numpy().tobytes()
    end = _HEADER + int.from_bytes(data[:_HEADER], "little")
    return unpacked(data[_HEADER:end], data[end:])


def in_group(function: Callable[..., None], processes: int | None = None, *arguments: Any) -> None:
    """Call `function(group, *arguments)` in so many new processes; by default one for each GPU.

    The function has to be one that can be imported. Raises what a process failed of.
    """
    gpus = torch.cuda.device_count()
    size = processes or gpus
    if size < 1 or 0 < gpus < size:
        raise InvalidInput(
            f"there are {gpus} GPUs: say how many processes, at most one for each GPU there is"
        )
    with tempfile.TemporaryDirectory(prefix="superduper-group-") as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        start_processes(  # type: ignore[no-untyped-call]
            _member, (function, size, meeting, arguments), nprocs=size, start_method="spawn"
        )


def _member(
    rank: int, function: Callable[..., None], size: int, meeting: str, arguments: tuple[Any, ...]
) -> None:
    on_gpus = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    distributed.init_process_group(
        "nccl" if on_gpus else "gloo", init_method=meeting, rank=rank, world_size=size
    )
    words = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    function(Group(rank, size, device, words), *arguments)
    # Not where it fails: the others would fail of that, and before this process has said why.
    distributed.destroy_process_group()


class GroupEngine(Engine):
    """An engine whose steps are shared by a group; `run` leads, or helps until the run is over.

    Batches are those of one process: each of the group computes a part of every one. It has to be
    made, and run, in every process of the group alike. What a checkpoint holds is the leader's.
    """

    def __init__(self, plan: Plan, policies: Sequence[Policy], group: Group) -> None:
        stages = [_shared(stage, group) for stage in plan.stages]
        super().__init__(Plan(stages, plan.seed), policies if group.leads else ())
        self.group = group
        self._leading = False

    def run(self) -> None:
        """Train until the plan is done or a policy ends it."""
        state = self.group.told({**self._own_state(), "policies": []})
        if not self.group.leads:
            self.load_state_dict(state)
            _Helper(self).run()
            return
        self._leading = True
        try:
            super().run()
        finally:
            self._leading = False
            self.group.told(("end",))

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, with what the others have counted."""
        if self._leading:
            self._collect()
        return self._own_state()

    def _own_state(self) -> dict[str, Any]:
        return super().state_dict()

    def _train_on(self, stage: Stage, batch: Batch) -> StepResult:
        settings = {name: _settings(each) for name, each in stage.optimizers.items()}
        self.group.told(("step", dataclasses.asdict(self.cursor), settings))
        return super()._train_on(stage, batch)

    def _means(self) -> dict[str, float]:
        self._collect()
        return super()._means()

    def _collect(self) -> None:
        """Add to the sums of this epoch those of the others, who begin anew."""
        self.group.told(("report",))
        for state in self.group.collected(None):
            self._train.merge(state)


class _Helper:
    """The part of a process that does not lead: it does what it is told to."""

    def __init__(self, engine: GroupEngine) -> None:
        self.engine = engine
        self.group = engine.group
        self._means = Means()
        self._batches: Iterator[Batch] = iter(())
        self._next = (-1, -1, -1)

    def run(self) -> None:
        """Help until the leader says that it is over."""
        while True:
            match self.group.told():
                case ("step", dict(cursor), dict(settings)):
                    self._step(cursor, settings)
                case ("report",):
                    self.group.collected(self._means.state_dict())
                    self._means = Means()
                case _:
                    return

    def _step(self, cursor: Mapping[str, int], settings: Mapping[str, Any]) -> None:
        place = (cursor["stage"], cursor["epoch"], cursor["batch"])
        stage = self.engine.plan.stages[place[0]]
        if place != self._next:
            stage.graph.train()
            self._batches = stage.source.batches(place[1], start=place[2])
        self._next = (place[0], place[1], place[2] + 1)
        for name, optimizer in stage.optimizers.items():
            for group, values in zip(optimizer.param_groups, settings[name], strict=True):
                group.update(values)
        self._seed(cursor["step"])
        batch = next(self._batches)
        result = stage.objective.step(stage.graph, batch.frame, batch.n, stage.optimizers)
        self._means.add(result.losses, batch.n)

    def _seed(self, step: int) -> None:
        """Draw what is random in a step from where it is: there is no state to be kept."""
        words = [self.engine.plan.seed or 0, step, self.group.rank]
        seed_everything(int(numpy.random.SeedSequence(words).generate_state(1)[0]))


class _ShareObjective(Objective):
    """A loss weighted so that the mean of the group's gradients is that of the whole batch."""

    def __init__(self, whole: Objective, size: int) -> None:
        super().__init__(whole.terms, whole.precision)
        self.size = size
        #: Of the present batch, the part that this process has.
        self.share = 1.0

    def total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the terms; one that is a sum already is not weighted by its part."""
        return super().total(
            {
                name: loss * (self.size * (bool(self.share) if self.sums[name] else self.share))
                for name, loss in losses.items()
            }
        )


class _Share(IndexSource):
    """A part of every batch of a source: of 7 records 3 for one process and 4 for the other.

    A process for which there is none gets the batch's first record, so that it has something to
    compute, and it is counted as nothing.
    """

    def __init__(self, whole: IndexSource, objective: _ShareObjective, group: Group) -> None:
        vars(self).update(vars(whole))
        self._objective = objective
        self._rank = group.rank

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's parts of the batches of an epoch, from the `start`-th on."""
        wholes = self.sizes()
        for number, batch in enumerate(super().batches(epoch, start), start):
            first, last = self._bounds(wholes[number])
            self._objective.share = (last - first) / wholes[number]
            yield dataclasses.replace(batch, n=last - first)

    def places(self, order: torch.Tensor, start: int, sizes: list[int]) -> list[torch.Tensor]:
        """Which records go into this process's parts of some batches."""
        return [self._part(whole) for whole in super().places(order, start, sizes)]

    def _part(self, whole: torch.Tensor) -> torch.Tensor:
        first, last = self._bounds(len(whole))
        return whole[first:last] if last > first else whole[:1]

    def _bounds(self, n: int) -> tuple[int, int]:
        rank, size = self._rank, self._objective.size
        return n * rank // size, n * (rank + 1) // size


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """How an optimizer is set at present, without what it trains."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def _shared(stage: Stage, group: Group) -> Stage:
    """A stage with the training of its batches shared by a group."""
    if type(stage.objective) is not Objective or not isinstance(stage.source, IndexSource):
        raise InvalidInput(
            "a group can train an Objective on an IndexSource; a step of its own, or a loader, it "
            "cannot share"
        )
    objective = _ShareObjective(stage.objective, group.size)
    return dataclasses.replace(
        stage,
        graph=Graph([_averaging(node, group) for node in stage.graph.nodes]),
        objective=objective,
        source=_Share(stage.source, objective, group),
    )


def _averaging(node: Node, group: Group) -> Node:
    """A node whose module's gradients are averaged over a group when they are computed."""
    if not any(parameter.requires_grad for parameter in node.module.parameters()):
        return node
    devices = [group.device] if group.device.type == "cuda" else None
    averaging = DistributedDataParallel(node.module, device_ids=devices)
    call = node.call or (lambda module, *inputs: module(*inputs))

    def called(module: torch.nn.Module, *inputs: Any) -> Any:
        # DDP waits for the others when it is trained; the leader validates alone.
        return call(averaging if module.training else module, *inputs)

    return dataclasses.replace(node, call=called)
