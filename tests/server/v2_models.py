"""Models for the tests of the Open Inference Protocol, on a server of their own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pymongo.database import Database

import superduper_client
from superduper_server.serve import Server, make_server
from tests.server.running import serving


class Double(torch.nn.Module):
    """Twice its input; 13 raises."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 13).any()):
            raise ValueError("13 is not allowed")
        return x * 2


def describe(value: dict[str, Any]) -> dict[str, Any]:
    """A function of fields, with an output for each kind of tensor."""
    weight = float(sum(value["numbers"]))
    return {"label": value["name"] * 2, "weight": weight, "count": 3, "more": {"a": [None]}}


@contextlib.contextmanager
def serving_models(database: Database[Any]) -> Iterator[Server]:
    """A real server without tokens that has the models."""
    with serving(make_server(database, insecure=True)) as server:
        with superduper_client.connect(server.url) as client:
            docs = client[database.name]["docs"]
            docs.create_model("double", Double(), sample=torch.tensor([1.0, 2.0, 3.0]))
            docs.create_model("describe", describe, sample={"name": "n", "numbers": [1, 2]})
            docs.create_model("loose", Double())
        yield server
