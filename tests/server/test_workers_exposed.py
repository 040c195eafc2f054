"""Several HTTP processes before clients that mean no good, with TLS, and with traces."""

import ssl
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import torch

import superduper_client
from superduper.store.mongo import connect_mongo
from tests.abuse.raw import send_mangled
from tests.server.certificates import make_certificate
from tests.server.running import Running, running
from tests.server.test_traces import Collector
from tests.waiting import until

NAME = "exposed_workers"
PREDICT = "/v1/collections/docs/models/double/predict"


class Double(torch.nn.Module):
    """Twice its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture(scope="module")
def collected() -> Iterator[tuple[str, list[bytes]]]:
    """Where spans are taken, and what came."""
    taken: list[bytes] = []
    kind = type("Taker", (Collector,), {"received": taken})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{collector.server_port}", taken
        collector.shutdown()


@pytest.fixture(scope="module")
def server(
    store_uri: str, collected: tuple[str, list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Two HTTP processes, shared by these tests."""
    arguments = ("serve", "--uri", store_uri, "--database", NAME, "--port", "0", "--json")
    traces = {"SUPERDUPER_TRACES": "on", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    traces["OTEL_EXPORTER_OTLP_ENDPOINT"] = collected[0]
    log = tmp_path_factory.mktemp("exposed") / "log"
    with running(log, *arguments, "--workers", "2", **traces) as server:
        register(server)
        yield server
    assert "Traceback" not in server.log()
    with connect_mongo(store_uri) as mongo:
        mongo.drop_database(NAME)


def register(server: Running) -> None:
    ready = server.ready
    with superduper_client.connect(ready["url"], ready["token"]) as client:
        client[NAME]["docs"].create_model("double", Double(), sample=torch.ones(2))


def memory_mb(server: Running) -> int:
    root = psutil.Process(server.process.pid)
    return sum(each.memory_info().rss for each in (root, *root.children())) >> 20


def test_what_is_not_http(server: Running) -> None:
    before = memory_mb(server)
    known = {each.pid for each in psutil.Process(server.process.pid).children()}
    said, problems = send_mangled(int(server.ready["url"].rpartition(":")[2]), range(300))
    assert problems == []
    assert said["400"] > 100
    assert memory_mb(server) - before < 100
    assert {each.pid for each in psutil.Process(server.process.pid).children()} >= known
    with server.http() as first, server.http() as second:
        for http in (first, second):
            assert http.post(PREDICT, json={"inputs": [[1.0, 2.0]]}).json()["outputs"] == [[2, 4]]


def test_both_processes_tell_of_their_requests(
    server: Running, collected: tuple[str, list[bytes]]
) -> None:
    # A trace's number is the sender's, so that each request is known among the spans.
    traces = [f"{number:032x}" for number in (0xA0, 0xB0)]
    marks = set()
    with server.http() as first, server.http() as second:
        for http, trace in zip((first, second), traces, strict=True):
            headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
            answer = http.post(PREDICT, json={"inputs": [[1.0, 2.0]]}, headers=headers)
            assert answer.status_code == 200
            marks.add(answer.headers["x-request-id"].partition("-")[0])
    assert len(marks) == 2
    for trace in traces:
        until(lambda trace=trace: bytes.fromhex(trace) in b"".join(collected[1]), what="its span")
    sent = b"".join(collected[1])
    assert all(sent.count(bytes.fromhex(trace)) == 3 for trace in traces)  # and queue, and model


def test_both_processes_speak_tls(server: Running, store_uri: str, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    arguments = ("serve", "--uri", store_uri, "--database", NAME, "--port", "0", "--json")
    arguments += ("--tls-certificate", certificate, "--tls-key", key, "--workers", "2")
    trusted = ssl.create_default_context(cafile=certificate)
    with running(tmp_path / "log", *arguments) as secure:
        assert secure.ready["url"].startswith("https://")
        secure.ready["token"] = server.ready["token"]  # which was told once, by the first server
        marks = set()
        with secure.http(verify=trusted) as first, secure.http(verify=trusted) as second:
            for http in (first, second):
                answer = http.post(PREDICT, json={"inputs": [[1.0, 2.0]]})
                assert answer.json()["outputs"] == [[2, 4]]
                marks.add(answer.headers["x-request-id"].partition("-")[0])
        assert len(marks) == 2
    assert "Traceback" not in secure.log()
