"""One training in several processes, each with a GPU of its own or a part of the CPUs.

    def help(group):
        GroupEngine(make_plan(), [], group).run()

    with leading(2, torch.device("cpu"), help) as group:
        GroupEngine(make_plan(), policies, group).run()

One process leads. It alone has policies and data, validates and saves. For each step it tells the
others where it is and how its optimizers are set, and hands each of them its part of the batch.
Gradients are averaged while they are computed: those of an `Objective` by torch's
`DistributedDataParallel`; those of a step of a user's own, which may call any part of its models
and go backward several times, parameter by parameter. What a step measured is summed up over all.
So a policy need not know of any of this, and whatever ends the run ends it for all.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch.nn.parallel import DistributedDataParallel

from superduper.errors import InvalidInput, UserCodeError
from superduper.training.batch_parts import BatchPart, part_of
from superduper.training.engine import Engine, Plan, Stage
from superduper.training.graph import Frame, Graph, Node
from superduper.training.group import Group, leading, several
from superduper.training.objective import Objective, StepResult
from superduper.training.policies import Policy
from superduper.training.randomness import seed_everything
from superduper.training.sources import Batch
from superduper.training.weights import weights_hash


@contextlib.contextmanager
def shared_by(
    processes: int | None, graph: Graph, help: Callable[..., None], *arguments: Any
) -> Iterator[Group | None]:
    """The group that a door's setting asks for; None where it asks for no other process."""
    if not several(processes):
        yield None
        return
    assert processes is not None
    parameter = next(graph.parameters(), None)
    if parameter is None:
        raise InvalidInput("a model without parameters cannot be trained by several processes")
    with leading(processes, parameter.device, help, *arguments) as group:
        yield group


def engine_of(plan: Plan, policies: Sequence[Policy], group: Group | None) -> Engine:
    """The engine for a process alone, or for one of a group."""
    return Engine(plan, policies) if group is None else GroupEngine(plan, policies, group)


class HandedBatches:
    """The data of a process that does not lead: it has none, and is handed each batch."""

    def __len__(self) -> int:
        return 0

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """None."""
        return iter(())


class GroupEngine(Engine):
    """An engine whose steps are shared by a group; `run` leads, or helps until the run is over.

    Batches are those of one process: each of the group computes a part of every one. It has to be
    made, and run, in every process of the group alike; the data and the policies are the leader's.
    """

    def __init__(self, plan: Plan, policies: Sequence[Policy], group: Group) -> None:
        self.group = group
        self.part = BatchPart(group)
        self._own: list[Stage] = []
        self._hooks: list[Any] = []
        stages = [self._shared(stage) for stage in plan.stages]
        super().__init__(Plan(stages, plan.seed), policies if group.leads else ())

    def run(self) -> None:
        """Train until the plan is done or a policy ends it."""
        state = self.group.told({**self.state_dict(), "policies": []})
        try:
            if not self.group.leads:
                self.load_state_dict(state)
                self._help()
                return
            super().run()
            self.group.told(("end",))
        finally:
            self._unshare()

    def _shared(self, stage: Stage) -> Stage:
        """A stage with the training of its batches shared by the group."""
        if any(isinstance(each, torch.optim.LBFGS) for each in stage.optimizers.values()):
            raise InvalidInput(
                "LBFGS cannot be shared by several processes: each would search by itself"
            )
        if type(stage.objective) is Objective:
            nodes = [_averaging(node, self.group) for node in stage.graph.nodes]
            objective = _ShareObjective(stage.objective, self.part)
            return dataclasses.replace(stage, graph=Graph(nodes), objective=objective)
        stage.objective.part = self.part
        self._own.append(stage)
        self._hooks += [
            parameter.register_post_accumulate_grad_hook(self.part.average)  # type: ignore[no-untyped-call]
            for parameter in stage.graph.parameters()
        ]
        return stage

    def _unshare(self) -> None:
        """Leave models and steps as they were for who goes on with them alone."""
        for hook in self._hooks:
            hook.remove()
        for stage in self._own:
            stage.objective.part = None

    # The leader ------------------------------------------------------------------------------

    def _train_on(self, stage: Stage, batch: Batch) -> StepResult:
        settings = {name: _settings(each) for name, each in stage.optimizers.items()}
        word = stage.objective.told()
        self.group.told(("step", dataclasses.asdict(self.cursor), settings, word, batch.n))
        for rank in range(1, self.group.size):
            self._hand_out(rank, batch)
        return self._step(stage, part_of(batch.frame, batch.n, *self.part.bounds(0, batch.n)))

    def _hand_out(self, rank: int, batch: Batch) -> None:
        frame = part_of(batch.frame, batch.n, *self.part.bounds(rank, batch.n))
        try:
            self.group.send(rank, frame)
        except InvalidInput as error:
            raise InvalidInput(
                f"a batch cannot be handed to the other processes: {error}"
            ) from error

    def _finish_epoch(self, stage: Stage) -> None:
        self.group.told(("finish",))
        super()._finish_epoch(stage)
        own = _hash(stage.graph)
        for rank in range(1, self.group.size):
            if self.group.receive(rank) != own:
                raise UserCodeError(
                    f"after epoch {self.cursor.epoch + 1} process {rank} has other weights than "
                    "the first: a step that draws weights at random, or decides by its own losses, "
                    "cannot be shared"
                )

    # The others ------------------------------------------------------------------------------

    def _help(self) -> None:
        """Do what the leader says until it is over."""
        while True:
            match self.group.told():
                case ("step", dict(cursor), dict(settings), word, int(n)):
                    self.cursor.stage = cursor["stage"]
                    _set(self.stage.optimizers, settings)
                    self.stage.objective.hear(word)
                    self._seed(cursor["step"])
                    frame = self.group.receive(0)
                    self.part.bounds(self.group.rank, n)
                    self._step(self.stage, frame)
                case ("finish",):
                    super()._finish_epoch(self.stage)
                    self.group.send(0, _hash(self.stage.graph))
                case _:
                    return

    def _seed(self, step: int) -> None:
        """Draw what is random in a step from where it is: there is no state to be kept."""
        words = [self.plan.seed or 0, step, self.group.rank]
        seed_everything(int(numpy.random.SeedSequence(words).generate_state(1)[0]))

    # All of them -----------------------------------------------------------------------------

    def _step(self, stage: Stage, frame: Frame) -> StepResult:
        stage.graph.train()
        return stage.objective.step(stage.graph, frame, self.part.n, stage.optimizers)


def _hash(graph: Graph) -> str:
    return weights_hash({str(i): each for i, each in enumerate(graph.parameters())})


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """How an optimizer is set at present, without what it trains."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def _set(optimizers: Mapping[str, torch.optim.Optimizer], settings: Mapping[str, Any]) -> None:
    for name, optimizer in optimizers.items():
        for group, values in zip(optimizer.param_groups, settings[name], strict=True):
            group.update(values)


class _ShareObjective(Objective):
    """A loss weighted so that the mean of the group's gradients is that of the whole batch."""

    def __init__(self, whole: Objective, part: BatchPart) -> None:
        super().__init__(whole.terms, whole.precision)
        self.part: BatchPart = part

    def total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the terms; one that is a sum already is not weighted by its part."""
        size, share = self.part.group.size, self.part.share
        return super().total(
            {
                name: loss * (size * (bool(share) if self.sums[name] else share))
                for name, loss in losses.items()
            }
        )


def _averaging(node: Node, group: Group) -> Node:
    """A node whose module's gradients are averaged over a group when they are computed."""
    if not any(parameter.requires_grad for parameter in node.module.parameters()):
        return node
    devices = [group.device] if group.device.type == "cuda" else None
    averaging = DistributedDataParallel(node.module, device_ids=devices)
    call: Callable[..., Any] = node.call or (lambda module, *inputs: module(*inputs))

    def called(module: torch.nn.Module, *inputs: Any) -> Any:
        # DDP waits for the others when it is trained; the leader validates alone.
        return call(averaging if module.training else module, *inputs)

    return dataclasses.replace(node, call=called)
