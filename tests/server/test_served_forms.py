"""Faster forms on servers: told in figures, the same at every door, followed by other servers."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import torch
from pymongo.database import Database

import superduper_client
from superduper.collection import Collection
from superduper_server.serve import Server, make_server
from tests.server.running import run, serving
from tests.waiting import until

DIM = 8
V1 = "/v1/collections/docs/models/m/predict"
V2 = "/v2/models/docs.m/infer"


class Fast16(torch.nn.Module):
    """Much faster with 16 bits, on any processor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(DIM, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(300 if x.dtype == torch.float32 else 0):
            x = x + x.cos() * 0
        return self.layer(x)


@pytest.fixture
def server(database: Database[Any]) -> Iterator[Server]:
    with serving(make_server(database, insecure=True)) as server:
        yield server


@pytest.fixture
def docs(server: Server, database: Database[Any]) -> Iterator[Collection]:
    with superduper_client.connect(server.url) as client:
        docs = client[database.name]["docs"]
        docs.create_model("m", Fast16(), sample=torch.ones(DIM))
        yield docs


@pytest.fixture
def http(server: Server, docs: Collection) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


def test_every_door_gives_the_same_bytes_in_a_faster_form(
    http: httpx2.Client, docs: Collection, server: Server
) -> None:
    numbers = [0.1 * n for n in range(DIM)]
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, DIM], "data": numbers}
    bodies = {V1: {"inputs": [numbers]}, V2: {"inputs": [tensor]}}
    plain = {path: http.post(path, json=body).content for path, body in bodies.items()}
    assert docs.model("m").set_form("bf16")["report"]["serves"] == "bf16"
    fast = server.config.app.state.fast  # type: ignore[union-attr]
    for path, body in bodies.items():
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        # What has a header twice is nothing for the short ways.
        twice = [*headers.items(), ("X-Twice", "1"), ("X-Twice", "2")]
        ordinary = http.post(path, content=content, headers=twice)
        assert ordinary.status_code == 200 and ordinary.content != plain[path]
        begun = fast.begun

        def quick(path: str = path, content: bytes = content, headers: Any = headers) -> bytes:
            return http.post(path, content=content, headers=headers).content

        answers = [quick() for _ in range(5)]
        assert set(answers) == {ordinary.content} and fast.begun > begun
    docs.model("m").set_form("plain")
    assert {path: http.post(path, json=body).content for path, body in bodies.items()} == plain


def test_the_figures_tell_which_form_serves(http: httpx2.Client, docs: Collection) -> None:
    assert "superduper_model_form{" not in http.get("/metrics").text
    assert "parameters" not in http.get("/v2/models/docs.m").json()
    docs.model("m").set_form("bf16")
    assert http.get("/v2/models/docs.m").json()["parameters"] == {"form": "bf16"}
    id = "docs/model/m@1"
    text = http.get("/metrics").text
    assert f'superduper_model_form{{asked="bf16",model="{id}",serves="bf16"}} 1.0' in text
    assert f'superduper_model_form_difference{{form="bf16",model="{id}"}} 0.0' in text
    assert f'superduper_model_form_speedup{{form="bf16",model="{id}"}}' in text
    assert f'superduper_model_left_to_plain_total{{model="{id}"}} 0.0' in text
    # Nothing is lost where the form cannot: the plain one answers, and that is counted.
    answer = http.post(V1, json={"inputs": [[3.4e38] * DIM]})
    assert answer.status_code == 200
    assert f'superduper_model_left_to_plain_total{{model="{id}"}} 1.0' in http.get("/metrics").text
    docs.model("m").set_form("bf16", tolerance=0)
    text = http.get("/metrics").text
    assert f'superduper_model_form{{asked="bf16",model="{id}",serves="plain"}} 1.0' in text


def test_another_server_follows(
    http: httpx2.Client, docs: Collection, database: Database[Any]
) -> None:
    with (
        serving(make_server(database, insecure=True)) as other,
        httpx2.Client(base_url=other.url, timeout=60) as there,
    ):
        body = {"inputs": [[0.1] * DIM]}
        plain = there.post(V1, json=body).content
        docs.model("m").set_form("bf16")
        wanted = http.post(V1, json=body).content
        assert wanted != plain

        def answer() -> bytes:
            told = there.post(V1, json=body)
            assert told.status_code == 200  # meanwhile the old form answers
            assert told.content in (plain, wanted)
            return told.content

        until(lambda: answer() == wanted, what="the other server has the form")
        docs.model("m").set_form("plain")
        until(lambda: answer() == plain, what="the other server is back")


def test_on_the_command_line(server: Server, docs: Collection, database: Database[Any]) -> None:
    at = ("docs", "m", "--uri", server.url, "--database", database.name)
    told = json.loads(run("form", *at, "--set", "bf16", "--tolerance", "0.02", "--json").stdout)
    assert told["tolerance"] == 0.02 and told["report"]["serves"] == "bf16"
    assert json.loads(run("form", *at, "--json").stdout) == told
    assert "bf16" in run("form", *at).stdout
    refused = run("form", *at, "--agreement", "0.9")
    assert refused.returncode == 1 and "--agreement go with --set" in refused.stderr
    assert run("form", *at, "--set", "fp4").returncode == 1
