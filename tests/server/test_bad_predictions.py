"""What people send to models that cannot go well: a right status in time, a server that lives."""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import bson
import httpx2
import psutil
import pytest

import superduper_client
from superduper_server.serve import Server, make_server
from tests.server.running import serving

PATH = "/v1/collections/docs/models/{}/predict"
DEADLY = 13


def fragile(n: Any) -> Any:
    if n == 13:
        import os

        os._exit(7)
    return n


def never(n: Any) -> Any:
    import os

    os._exit(9)


def shape(x: Any) -> list[int]:
    return list(x.shape)


@pytest.fixture(scope="module")
def server(store_uri: str) -> Iterator[Server]:
    from superduper.store.mongo import connect_mongo

    with connect_mongo(store_uri) as mongo:
        with serving(make_server(mongo["bad_predictions"], insecure=True)) as server:
            with superduper_client.connect(server.url) as client:
                docs = client["bad_predictions"]["docs"]
                docs.create_model("fragile", fragile)
                docs.create_model("never", never)
                docs.create_model("shape", shape)
            yield server
        mongo.drop_database("bad_predictions")


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


def test_as_many_inputs_as_are_taken_and_one_more(http: httpx2.Client) -> None:
    asked = {"inputs": list(range(100, 10_100))}
    assert http.post(PATH.format("fragile"), json=asked).json()["outputs"] == asked["inputs"]
    asked["inputs"].append(1)
    answer = http.post(PATH.format("fragile"), json=asked)
    assert answer.status_code == 422
    assert "inputs: List should have at most 10000 items" in answer.json()["error"]["message"]
    floats = {"inputs": [[1.0]] * 10_001}
    assert http.post(PATH.format("fragile"), json=floats).status_code == 422
    assert http.post(PATH.format("fragile"), json={"inputs": []}).json()["outputs"] == []


def test_numbers_that_are_none_and_what_is_not_there(http: httpx2.Client) -> None:
    headers = {"Content-Type": "application/json"}
    answer = http.post(PATH.format("shape"), content=b'{"inputs": [[NaN]]}', headers=headers)
    assert answer.status_code == 400
    headers = {"Content-Type": "application/bson", "Accept": "application/bson"}
    body = bson.encode({"inputs": [[float("nan"), float("inf")]]})
    answer = http.post(PATH.format("shape"), content=body, headers=headers)
    assert bson.decode(answer.content)["result"]["outputs"] == [[2]]  # a float as others
    assert http.post(PATH.format("nothing"), json={"inputs": [1]}).status_code == 404
    pinned = PATH.format("shape").replace("/predict", "/versions/8/predict")
    assert http.post(pinned, json={"inputs": [1]}).status_code == 404


def test_a_model_that_dies_in_the_middle_of_a_batch(http: httpx2.Client, server: Server) -> None:
    numbers = [*range(20, 40), DEADLY]
    heard: dict[int, Any] = {}

    def ask(number: int) -> None:
        heard[number] = httpx2.post(
            server.url + PATH.format("fragile"), json={"inputs": [number]}, timeout=60
        )

    for _ in range(2):  # and once more: its process is there again
        threads = [threading.Thread(target=ask, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        died = heard.pop(DEADLY)
        assert (died.status_code, died.json()["error"]["code"]) == (503, "child_died")
        assert "exit code 7" in died.json()["error"]["message"]
        for number, answer in heard.items():
            assert (answer.status_code, answer.json().get("outputs")) == (200, [number])


def test_a_model_that_always_dies_is_given_up_for_a_while(
    http: httpx2.Client, server: Server
) -> None:
    codes: Counter[str] = Counter()
    for _ in range(6):
        answer = http.post(PATH.format("never"), json={"inputs": [1]})
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        codes[answer.json()["error"]["code"]] += 1
    assert codes == {"child_died": 5, "not_ready": 1}
    told = answer.json()["error"]["message"]
    assert "failed 5 times within 60 s and is not started again for" in told
    assert "exit code 9" in told
    assert 30 < int(answer.headers["retry-after"]) <= 60
    assert_given_up(http, "docs.never", "docs/model/never@1")
    assert http.post(PATH.format("fragile"), json={"inputs": [1]}).json()["outputs"] == [1]


def assert_given_up(http: httpx2.Client, model: str, component_id: str) -> None:
    """Whoever asks about a model before asking it is told that it will not answer."""
    ready = http.get(f"/v2/models/{model}/ready")
    assert (ready.status_code, ready.json()) == (503, {"name": model, "ready": False})
    [row] = [row for row in http.post("/v2/repository/index").json() if row["name"] == model]
    assert row["state"] == "UNAVAILABLE"
    assert "is not started again for" in row["reason"]
    assert model not in {
        row["name"] for row in http.post("/v2/repository/index", json={"ready": True}).json()
    }
    figures = http.get("/metrics").text
    assert f'superduper_model_setbacks_total{{model="{component_id}"}} 5.0' in figures
    assert f'superduper_model_given_up{{model="{component_id}"}} 1.0' in figures


def test_memory_stays_where_it_was(http: httpx2.Client) -> None:
    """Bodies that are refused late leave nothing behind."""
    process = psutil.Process()
    body = bson.encode({"inputs": [bytes(1_000_000)] * 8 + [{"$bad": 1}], "more": 1})
    headers = {"Content-Type": "application/bson"}

    def send(times: int) -> int:
        for _ in range(times):
            answer = http.post(PATH.format("shape"), content=body, headers=headers)
            assert answer.status_code == 422
        return process.memory_info().rss

    before = send(10)
    assert send(40) < before + 100_000_000  # of 320 MB that were sent
