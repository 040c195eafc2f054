"""Versions on trial: a canary's share of the requests, a shadow compared, and the way back."""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import torch
from pymongo.database import Database

import superduper_client
from superduper.collection import Collection
from superduper.errors import InUse, InvalidInput, NotFound
from superduper_server.serve import Server, make_server
from tests.imputations.fitting import Fitting
from tests.server.running import serving
from tests.waiting import until

V1 = "/v1/collections/docs/models/m/predict"
V2 = "/v2/models/docs.m/infer"


class Times(torch.nn.Module):
    """A multiple of its input; 13 is too much for some."""

    def __init__(self, factor: float, most: float = 1e9) -> None:
        super().__init__()
        self.factor, self.most = factor, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > self.most).any()):
            raise ArithmeticError("too much")
        return x * self.factor


@pytest.fixture
def server(database: Database[Any]) -> Iterator[Server]:
    with serving(make_server(database, insecure=True)) as server:
        yield server


@pytest.fixture
def docs(server: Server, database: Database[Any]) -> Iterator[Collection]:
    """A collection with three versions of a model, the first of them live."""
    with superduper_client.connect(server.url) as client:
        docs = client[database.name]["docs"]
        for model in (Times(2), Times(3), Times(2.5, most=10)):
            docs.create_model("m", model, sample=torch.ones(2))
        server.backend.service.context.registry.set_live("docs", "model", "m", 1)
        yield docs


@pytest.fixture
def http(server: Server, docs: Collection) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


def versions(http: httpx2.Client, numbers: range) -> list[int]:
    """The version that answers each number; each answer must be that version's own."""
    found = []
    for number in numbers:
        told = http.post(V1, json={"inputs": [[float(number), 1.0]]}).json()
        factor = {1: 2.0, 2: 3.0, 3: 2.5}[told["version"]]
        assert told["outputs"] == [[number * factor, factor]]
        found.append(told["version"])
    return found


def test_a_canary_answers_its_share_and_always_the_same_requests(
    http: httpx2.Client, docs: Collection, server: Server
) -> None:
    assert set(versions(http, range(20))) == {1}
    told = docs.model("m").set_traffic(canary={"version": 2, "share": 0.25})
    assert told["live"] == 1 and told["canary"] == {"version": 2, "share": 0.25}
    assert server.backend.service.context.hosts.is_loaded("docs/model/m@2")  # before its share

    found = versions(http, range(200))
    counts = Counter(found)
    assert counts.keys() == {1, 2} and 30 <= counts[2] <= 70
    assert versions(http, range(200)) == found
    counted = docs.model("m").traffic()["counts"]
    assert counted["canary_answered"] == 2 * counts[2]
    assert counted["live_answered"] == 2 * counts[1]
    assert counted["canary_failed"] == counted["shadow_same"] == 0
    # A version that is pinned is the one that answers.
    for number in range(10):
        asked = {"inputs": [[float(number), 1.0]], "version": 1}
        assert http.post(V1, json=asked).json()["version"] == 1
    metrics = http.get("/metrics").text
    line = 'superduper_trial_answers_total{answer="canary_answered",policy="docs/model/m"}'
    assert f"{line} {2.0 * counts[2]}" in metrics


def test_the_open_inference_protocol_has_the_same_policy(
    http: httpx2.Client, docs: Collection
) -> None:
    docs.model("m").set_traffic(canary={"version": 2, "share": 0.5})
    found = set()
    for number in range(30):
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [number, 1]}
        told = http.post(V2, json={"inputs": [tensor]}).json()
        factor = {"1": 2.0, "2": 3.0}[told["model_version"]]
        assert told["outputs"][0]["data"] == [number * factor, factor]
        found.add(told["model_version"])
    assert found == {"1", "2"}


def test_a_shadow_is_compared_and_not_heard(http: httpx2.Client, docs: Collection) -> None:
    docs.model("m").set_traffic(shadow={"version": 3, "tolerance": 2.0})
    assert set(versions(http, range(20))) == {1}

    def counts() -> dict[str, Any]:
        found: dict[str, Any] = docs.model("m").traffic()
        return found if sum(v for k, v in found["counts"].items() if "shadow" in k) == 20 else {}

    told = until(counts, what="the shadow's answers")
    # 0.5 a unit: up to 4 they are within 2; from 11 on the shadow fails.
    assert told["counts"]["shadow_same"] == 5
    assert told["counts"]["shadow_different"] == 15
    assert told["counts"]["live_answered"] == 20
    assert told["largest_difference"] == 5.0
    assert told["shadow"] == {"version": 3, "share": 1.0, "tolerance": 2.0}


def test_the_way_back_is_instant_and_loses_nothing(
    http: httpx2.Client, docs: Collection, server: Server
) -> None:
    model, stop, wrong, asked = docs.model("m"), threading.Event(), [], Counter[int]()

    def ask() -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as mine:
            while not stop.is_set():
                try:
                    asked.update(versions(mine, range(20)))
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for share in (0.5, 1.0):
            before = asked[2]
            model.set_traffic(canary={"version": 2, "share": share})
            until(lambda before=before: asked[2] > before + 20, what="the canary's answers")
            assert model.set_traffic()["canary"] is None
            assert set(versions(http, range(20))) == {1}
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []


def test_a_canary_that_goes_live_has_everything(
    http: httpx2.Client, docs: Collection, server: Server
) -> None:
    docs.model("m").set_traffic(canary={"version": 2, "share": 0.5})
    server.backend.service.context.registry.set_live("docs", "model", "m", 2)
    until(lambda: set(versions(http, range(20))) == {2}, what="the new version everywhere")


def test_an_imputation_has_a_policy_with_its_own_versions(
    server: Server, database: Database[Any]
) -> None:
    fitting = Fitting(database)
    fitting.register_all()

    def learn(numbers: range) -> None:
        # Which fold a document is in is told by its _id: with these, both fits improve.
        labelled = [{"_id": n, "x": [n, 1], "y": ("low", "high")[n > 20]} for n in numbers]
        database["docs"].insert_many(labelled)
        fitting.fit(record)

    record = fitting.declare(max_epochs=3, promote="never")
    learn(range(40))
    learn(range(40, 60))
    path = f"{server.url}/v1/collections/docs/imputations/{record.name}"

    def asked() -> Counter[int]:
        bodies = [{"inputs": [[float(n), 1.0]]} for n in range(20)]
        answers = [httpx2.post(f"{path}/predict", json=body, timeout=60) for body in bodies]
        return Counter(answer.json()["version"] for answer in answers)

    assert asked() == {1: 20}
    policy = {"canary": {"version": 2, "share": 0.5}}
    answer = httpx2.put(f"{path}/traffic", json=policy, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["live"] == 1
    shared = asked()
    assert shared.keys() == {1, 2}
    counts = httpx2.get(f"{path}/traffic").json()["counts"]
    assert counts["canary_answered"] == shared[2] and counts["live_answered"] == shared[1]
    # The model behind it is asked as before.
    model = f"{server.url}/v1/collections/docs/models/model/predict"
    told = {
        httpx2.post(model, json={"inputs": [[float(n), 1.0]]}, timeout=60).json()["version"]
        for n in range(20)
    }
    assert len(told) == 1


def test_versions_on_trial_are_in_use(docs: Collection) -> None:
    model = docs.model("m")
    with pytest.raises(InvalidInput, match="version 1 is live"):
        model.set_traffic(canary={"version": 1, "share": 0.5})
    with pytest.raises(NotFound, match="no version 9"):
        model.set_traffic(shadow={"version": 9})
    with pytest.raises(InvalidInput, match=r"canary.share"):
        model.set_traffic(canary={"version": 2, "share": 1.5})
    model.set_traffic(canary={"version": 2, "share": 0.5}, shadow={"version": 3})
    for version in (2, 3):
        with pytest.raises(InUse, match="has a share of the traffic"):
            docs.delete("model", "m", version=version)
    docs.delete("model", "m")
    docs.create_model("m", Times(4))
    assert model.traffic()["canary"] is None  # it is not the policy of the new one
