"""The servers that ours is measured beside; each is a program `rival_<name>.py` in this folder.

Not among them is Triton's own server, which is no package of Python.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import environment
from benchmarks.serving.models import DIM, ROW
from benchmarks.serving.processes import BODY, HERE, Served, started

V2_BODY = json.dumps(
    {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, DIM], "data": ROW}]}
).encode()


@dataclass(frozen=True)
class Rival:
    """How one is started and asked."""

    path: str
    ports: int = 1
    requirements: str = "rivals.txt"
    body: bytes = BODY
    rows_in: Callable[[Any], Any] = lambda answer: answer["outputs"]


RIVALS = {
    "litserve": Rival("predict"),
    "mosec": Rival("inference"),
    "bentoml": Rival("predict", rows_in=lambda answer: answer),
    "torchserve": Rival("predictions/model", ports=3),
    "ray": Rival("predict"),
    "mlserver": Rival(
        "v2/models/model/infer",
        ports=3,
        requirements="rivals_mlserver.txt",
        body=V2_BODY,
        rows_in=lambda answer: answer["outputs"][0]["data"],
    ),
}


@contextlib.contextmanager
def rival(name: str, model: str) -> Iterator[Served]:
    """One of the others, in its environment, which is made if need be."""
    chosen = RIVALS[name]
    requirements = HERE / chosen.requirements
    python = environment.python(environment.ROOT / ".rivals" / requirements.stem, requirements)
    ports = free_ports(chosen.ports)
    path = {"PYTHONPATH": str(HERE)}
    command = [python, str(HERE / f"rival_{name}.py"), *map(str, ports)]
    with started(command, MODEL=model, **path) as process:
        url = f"http://127.0.0.1:{ports[0]}/{chosen.path}"
        yield Served(process, url, body=chosen.body, rows_in=chosen.rows_in)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in found]
