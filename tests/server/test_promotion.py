"""A version that is to be live takes over without a request being lost."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import torch
from pymongo.database import Database

import superduper_client
from superduper_server.serve import Server, make_server
from tests.server.running import serving
from tests.waiting import until

PATH = "/v1/collections/docs/models/m/predict"


class Times(torch.nn.Module):
    """A multiple of its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


@pytest.fixture
def server(database: Database[Any]) -> Iterator[Server]:
    with serving(make_server(database, insecure=True)) as server:
        with superduper_client.connect(server.url) as client:
            docs = client[database.name]["docs"]
            for factor in (2, 3):
                docs.create_model("m", Times(factor), sample=torch.ones(2))
        yield server


def test_no_request_is_lost_while_another_version_takes_over(server: Server) -> None:
    registry = server.backend.service.context.registry
    registry.set_live("docs", "model", "m", 1)
    stop, wrong, versions = threading.Event(), [], []

    def ask() -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as http:
            while not stop.is_set():
                answer = http.post(PATH, json={"inputs": [[1.0, 2.0]]})
                told = answer.json()
                factor = {1: 2.0, 2: 3.0}.get(told.get("version"))
                if answer.status_code != 200 or told["outputs"] != [[factor, factor * 2]]:
                    wrong.append(answer.text)
                versions.append((time.monotonic(), told.get("version")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(versions) > 20, what="answers of the first version")
        assert {version for _, version in versions} == {1}
        registry.set_live("docs", "model", "m", 2)  # as another process would
        until(lambda: versions[-1][1] == 2, what="answers of the second version")
        hosts = server.backend.service.context.hosts
        assert hosts.is_loaded("docs/model/m@2")
        registry.set_live("docs", "model", "m", 1)
        until(lambda: versions[-1][1] == 1, what="answers of the first version again")
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []
