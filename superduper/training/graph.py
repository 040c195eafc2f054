"""What is computed for a batch: named nodes that each turn some tensors of a frame into others.

A frame is a dictionary of a batch's tensors by name. One model is a graph of one node; a chain, or
a generator with its discriminator, has more. Nodes run in order and see what earlier ones made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from superduper.errors import InvalidInput, UserCodeError

Frame = dict[str, Any]


def description(sample: Any) -> str:
    """A sample's form in words: shapes, and the names of its parts."""
    if isinstance(sample, torch.Tensor):
        return f"shape {tuple(sample.shape)}"
    if isinstance(sample, Mapping):
        return "{" + ", ".join(f"{key}: {description(part)}" for key, part in sample.items()) + "}"
    if isinstance(sample, tuple):
        return "(" + ", ".join(description(part) for part in sample) + ")"
    return f"a {type(sample).__name__}"


@dataclass(frozen=True)
class Node:
    """One step of a graph: `module`, called with `inputs` of the frame, makes `outputs`.

    `call(module, *inputs)` says how the module is applied where that is not `module(*inputs)`.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    call: Callable[..., Any] | None = None

    def __call__(self, frame: Mapping[str, Any]) -> Frame:
        try:
            inputs = [frame[name] for name in self.inputs]
        except KeyError as error:
            raise InvalidInput(
                f"node {self.name!r} needs {error.args[0]!r}, which neither the batch nor an "
                f"earlier node has: there are {sorted(frame)}"
            ) from error
        call = self.call
        try:
            result = self.module(*inputs) if call is None else call(self.module, *inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserCodeError(
                f"{self.name} raised {type(error).__name__}: {error}; it was given a batch of "
                + description(inputs[0] if len(inputs) == 1 else tuple(inputs))
            ) from error
        if len(self.outputs) == 1:
            return {self.outputs[0]: result}
        if not isinstance(result, list | tuple) or len(result) != len(self.outputs):
            raise InvalidInput(f"node {self.name!r} must return {len(self.outputs)} outputs")
        return dict(zip(self.outputs, result, strict=True))


class Graph:
    """Nodes in the order in which they run."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        names = [node.name for node in nodes]
        if len(set(names)) != len(names):
            raise InvalidInput(f"two nodes have the same name: {names}")
        self.nodes = tuple(nodes)
        self.modules = {node.name: node.module for node in nodes}

    def __call__(self, frame: Frame) -> Frame:
        """The frame with the outputs of every node."""
        result = dict(frame)
        for node in self.nodes:
            result.update(node(result))
        return result

    def train(self, mode: bool = True) -> None:
        """Put every module into training mode, or into evaluation mode."""
        for module in self.modules.values():
            module.train(mode)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters that can be trained, each once."""
        seen: set[int] = set()
        for module in self.modules.values():
            for parameter in module.parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def to(self, device: torch.device) -> None:
        """Move every module to a device."""
        for module in self.modules.values():
            module.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The modules' states by node."""
        return {name: module.state_dict() for name, module in self.modules.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the states of all modules."""
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
