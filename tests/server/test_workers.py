"""Several HTTP processes on one port: what holds for one holds for all of them together."""

import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import psutil
import pytest
import torch

import superduper_client
from superduper.collection import Collection
from superduper.store.mongo import connect_mongo
from tests.server.two_processes import Two, ask, mark, path_of, process, two
from tests.waiting import until


class Company(torch.nn.Module):
    """How many rows are in the batch, which takes its time."""

    max_wait_ms = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2)
        return torch.full((len(x), 1), float(len(x)))


class Fast16(torch.nn.Module):
    """Much faster with 16 bits, on any processor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(300 if x.dtype == torch.float32 else 0):
            x = x + x.cos() * 0
        return self.layer(x)


def make_letters() -> Any:
    """A function that gives the letters of a text one by one, or how many such answers are open."""
    open_texts: list[str] = []

    def one_by_one(text: str) -> Iterator[str]:
        open_texts.append(text)
        try:
            yield from text
        finally:
            open_texts.remove(text)

    def letters(text: str) -> Any:
        return len(open_texts) if text == "open?" else one_by_one(text)

    return letters


@pytest.fixture(scope="module")
def server(store_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """One server for all tests: each has a collection of its own."""
    with connect_mongo(store_uri) as mongo:
        database = mongo[f"two_processes_{uuid.uuid4().hex[:12]}"]
        with two(store_uri, database, tmp_path_factory.mktemp("two") / "log") as found:
            yield found
        mongo.drop_database(database.name)


@pytest.fixture
def served(server: Two) -> Iterator[Two]:
    """It, without the connections that an earlier test had."""
    found = Two(server.server, server.database)
    with found.clients:
        yield found


@pytest.fixture
def docs(served: Two) -> Iterator[Collection]:
    ready = served.server.ready
    with superduper_client.connect(ready["url"], ready["token"]) as client:
        yield client[served.database][f"docs_{uuid.uuid4().hex[:12]}"]


def test_a_batch_holds_requests_of_both_processes(served: Two, docs: Collection) -> None:
    docs.create_model("company", Company(), sample=torch.ones(2))
    first, second = served.both()
    marks = {mark(ask(each, docs, "company", [1.0, 2.0])) for each in (first, second)}
    assert len(marks) == 2

    def company(pool: ThreadPoolExecutor) -> float:
        """The largest batch of requests that are made at once, four in each process."""
        asked = [
            pool.submit(ask, client, docs, "company", [1.0, 2.0])
            for _ in range(4)
            for client in (first, second)
        ]
        answers = [each.result() for each in asked]
        assert {answer.status_code for answer in answers} == {200}
        assert {mark(answer) for answer in answers} >= marks
        return max(float(answer.json()["outputs"][0][0]) for answer in answers)

    with ThreadPoolExecutor(8) as pool:  # a busy machine may not get them out at once each time
        until(lambda: company(pool) > 4, 60, "a batch of more than either process has")


def test_a_faster_form_serves_in_both_and_is_taken_back(served: Two, docs: Collection) -> None:
    docs.create_model("m", Fast16(), sample=torch.ones(8))
    first, second = served.both()
    both = first, second

    def answers() -> set[bytes]:
        return {ask(each, docs, "m", [0.1 * n for n in range(8)]).content for each in both}

    plain = answers()
    assert len(plain) == 1
    told = docs.model("m").set_form("bf16")
    assert told["report"]["serves"] == "bf16"
    faster = answers()
    assert len(faster) == 1 and faster != plain
    for each in both:
        labels = f'asked="bf16",model="{docs.name}/model/m@1",serves="bf16"'
        assert f"superduper_model_form{{{labels}}} 1.0" in each.get("/metrics").text
    assert docs.model("m").set_form("plain")["report"] is None
    assert answers() == plain


def test_a_model_that_dies_is_started_again_once(served: Two, docs: Collection) -> None:
    docs.create_model("process", process)
    first, second = served.both()
    before = {ask(each, docs, "process", "pid").json()["outputs"][0] for each in (first, second)}
    assert len(before) == 1
    died = ask(first, docs, "process", "die")
    assert died.status_code == 503 and died.json()["error"]["code"] == "child_died"
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, each, docs, "process", "pid") for each in (first, second) * 8]
        after = {each.result().json()["outputs"][0] for each in asked}
    assert len(after) == 1 and after != before


def test_a_model_that_always_dies_is_given_up_by_both(served: Two, docs: Collection) -> None:
    docs.create_model("process", process)
    both = served.both()
    for _ in range(5):
        assert ask(both[0], docs, "process", "die").status_code == 503
    for each in both:
        refused = ask(each, docs, "process", "pid")
        assert "is not started again" in refused.json()["error"]["message"]
        assert 30 < int(refused.headers["retry-after"]) <= 60
        assert each.get(f"/v2/models/{docs.name}.process/ready").status_code == 503


def test_an_http_process_that_is_killed_comes_back(served: Two, docs: Collection) -> None:
    docs.create_model("process", process)
    first, second = served.both()
    pid = ask(first, docs, "process", "pid").json()["outputs"][0]
    count = figure(second, "predict")
    heard: Counter[str] = Counter()
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            with served.server.http() as client:
                try:
                    for _ in range(30):
                        answer = ask(client, docs, "process", "pid")
                        assert answer.json() == {"outputs": [pid], "version": 1}
                        heard[mark(answer)] += 1
                except httpx2.TransportError:  # it was connected to the one that was killed
                    heard["lost"] += 1

    with ThreadPoolExecutor(6) as pool:
        callers = [pool.submit(go_on) for _ in range(6)]
        try:
            until(lambda: len(heard) == 2 and min(heard.values()) > 20, what="load on both")
            killed, other = served.processes()
            killed.kill()
            until(lambda: len(heard.keys() - {"lost"}) == 3, what="another process to answer")
        finally:
            ended.set()
        for caller in callers:
            caller.result()
    assert 1 <= heard["lost"] <= 6
    alive = {each.pid for each in served.processes()}
    assert other.pid in alive and killed.pid not in alive and len(alive) == 2
    assert figure(served.both()[0], "predict") > count  # what was told once is not forgotten


def figure(client: httpx2.Client, route: str) -> float:
    """How many requests of a route all processes have answered."""
    found = re.findall(rf"^superduper_requests_total.*/{route}\".* (\S+)$", metrics(client), re.M)
    return sum(map(float, found))


def metrics(client: httpx2.Client) -> str:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return answer.text


def test_figures_are_the_same_whoever_is_asked(served: Two, docs: Collection) -> None:
    docs.create_model("process", process)
    both = served.both()
    earlier = figure(both[0], "predict")
    for number, client in enumerate(both, start=2):
        for _ in range(number):
            assert ask(client, docs, "process", "pid").status_code == 200
    assert [figure(client, "predict") - earlier for client in both] == [5.0, 5.0]
    rows = f'superduper_model_batch_rows_sum{{model="{docs.name}/model/process@1"}} 5.0'
    assert all(rows in metrics(client) for client in both)
    stats = [client.get(f"/v2/models/{docs.name}.process/stats").json() for client in both]
    assert stats[0] == stats[1]
    assert stats[0]["model_stats"][0]["inference_count"] == 5


def test_a_new_version_is_live_in_both_at_once(served: Two, docs: Collection) -> None:
    both = served.both()
    for version in range(1, 6):
        docs.create_model("m", torch.nn.Linear(2, 1), sample=torch.ones(2))
        with served.server.http(timeout=60) as http:
            live = [ask(each, docs, "m", [1.0, 1.0]).json()["version"] for each in (*both, http)]
        assert live == [version] * 3


def test_a_trial_begins_and_ends_in_both_at_once(served: Two, docs: Collection) -> None:
    for _ in range(2):
        docs.create_model("m", torch.nn.Linear(2, 1), sample=torch.ones(2))
    both = served.both()

    def versions() -> list[int]:
        return [ask(each, docs, "m", [1.0, 1.0]).json()["version"] for each in both]

    assert versions() == [2, 2]
    docs.model("m").set_traffic(canary={"version": 1, "share": 1.0})
    assert versions() == [1, 1]
    docs.model("m").set_traffic()
    assert versions() == [2, 2]


def test_a_job_is_followed_through_the_other_process(served: Two, docs: Collection) -> None:
    docs.create_model("process", process)
    first, second = served.both()
    path = path_of(docs, "process") + "/jobs"
    job = first.post(path, json={"inputs": ["pid"]}).json()["job"]
    with second.stream("GET", f"/v1/jobs/{job}/events") as events:
        lines = events.iter_lines()
        assert next(lines) == "event: job" and job in next(lines)
        assert first.post(f"/v1/jobs/{job}/cancel").status_code == 200
        until(lambda: '"state":"cancelled"' in next(lines), what="the job's end")


def test_what_is_unloaded_is_so_in_both_and_after_a_restart(served: Two, docs: Collection) -> None:
    docs.create_model("m", Company(), sample=torch.ones(2))
    first, second = served.both()
    question = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}]}

    def statuses() -> list[int]:
        path = f"/v2/models/{docs.name}.m/infer"
        return [each.post(path, json=question).status_code for each in served.both()]

    assert statuses() == [200, 200]
    assert first.post(f"/v2/repository/models/{docs.name}.m/unload").status_code == 200
    assert statuses() == [503, 503]
    known = {each.pid for each in served.processes()}
    served.processes()[0].kill()
    until(lambda: len({each.pid for each in served.processes()} - known) == 1, what="a new one")
    assert statuses() == [503, 503]
    assert served.both()[0].post(f"/v2/repository/models/{docs.name}.m/load").status_code == 200
    assert statuses() == [200, 200]


def test_a_revoked_token_is_refused_by_both_at_once(served: Two) -> None:
    first, second = served.both()
    for _ in range(5):
        made = first.post("/v1/tokens", json={"role": "reader"}).json()
        headers = {"Authorization": f"Bearer {made['token']}"}
        both = (first, second)
        assert [each.get("/v1/status", headers=headers).status_code for each in both] == [200] * 2
        assert second.delete(f"/v1/tokens/{made['id']}").status_code == 200
        assert [each.get("/v1/status", headers=headers).status_code for each in both] == [401] * 2


def test_an_answer_in_pieces_ends_with_its_process(served: Two, docs: Collection) -> None:
    docs.create_model("letters", make_letters())
    _, second = served.both()
    path = path_of(docs, "letters") + "/stream"
    long = {"input": "x" * 100_000}

    def open_answers(client: httpx2.Client) -> int:
        return int(ask(client, docs, "letters", "open?").json()["outputs"][0])

    with second.stream("POST", path, json=long) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: piece"
        third = next(each for each in served.both() if mark(each.get("/healthz")) != mark(answer))
        assert open_answers(third) == 1
        for each in served.processes():
            if is_of(each, answer, served):
                each.kill()
        until(lambda: open_answers(third) == 0, what="the answer to be closed")


def is_of(process: psutil.Process, answer: httpx2.Response, served: Two) -> bool:
    """Whether a process has the connection of an answer."""
    local = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
    return any(each.raddr and each.raddr.port == local for each in process.net_connections("tcp"))
