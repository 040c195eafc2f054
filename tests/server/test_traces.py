"""Traces, where they are asked for: of a request, its time in the queue and in the model."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from superduper.errors import InvalidInput
from superduper.fields.sealing import seal
from superduper.service import Service
from superduper_server.app import build_app
from superduper_server.traces import Tracer, tracer_of_settings
from tests.server.conftest import LIMITS
from tests.server.running import BASE_URL, running
from tests.waiting import until

PATH = "/v1/collections/docs/models/double/predict"
ROUTE = "/v1/collections/{collection}/models/{name}/predict"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(service: Service, spans: InMemorySpanExporter) -> Iterator[TestClient]:
    """A client of an app that keeps its spans, with a model."""
    parts = {"object": lambda n: n * 2, "preprocess": None, "postprocess": None}
    registry = service.context.registry
    registry.register("docs", "model", "double", seal(parts), author="tests", details={})
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = build_app(service, insecure=True, limits=LIMITS, tracer=Tracer(provider))
    with TestClient(app, base_url=BASE_URL) as client:
        yield client


def taken(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """The spans that have ended since the last time, by name."""
    found = {span.name: span for span in spans.get_finished_spans()}
    spans.clear()
    return found


@pytest.mark.parametrize("door", ["ordinary", "fast path"])
def test_a_prediction_has_three_spans(
    traced: TestClient, spans: InMemorySpanExporter, door: str
) -> None:
    fast = traced.app.state.fast  # type: ignore[attr-defined]
    pinned = {"version": 1} if door == "ordinary" else {}  # which the short way leaves alone

    def ask() -> bool:
        taken(spans)
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "r-7"}
        answer = traced.post(PATH, json={"inputs": [1, 2, 3], **pinned}, headers=headers)
        assert answer.json()["outputs"] == [2, 4, 6]
        return bool(fast.begun) is (door == "fast path")

    until(ask, what="a prediction by that door")

    found = taken(spans)
    assert found.keys() == {f"POST {ROUTE}", "queue", "model"}
    request, queue, model = found[f"POST {ROUTE}"], found["queue"], found["model"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == SPAN  # type: ignore[union-attr]
    assert request.attributes["http.response.status_code"] == 200  # type: ignore[index]
    assert request.attributes["superduper.request_id"] == "r-7"  # type: ignore[index]
    for inner in (queue, model):
        assert inner.parent.span_id == request.context.span_id  # type: ignore[union-attr]
        assert inner.attributes["superduper.model"] == "docs/model/double@1"  # type: ignore[index]
        assert inner.attributes["superduper.rows"] == 3  # type: ignore[index]
    assert queue.start_time <= queue.end_time == model.start_time <= model.end_time  # type: ignore[operator]


def test_other_requests_have_one(traced: TestClient, spans: InMemorySpanExporter) -> None:
    traced.get("/v1/status")
    traced.get("/nowhere/secret")
    assert set(taken(spans)) == {"GET /v1/status", "any unmatched"}


def test_off_it_costs_no_import() -> None:
    assert tracer_of_settings() is None
    code = "import sys, superduper_server.serve; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_setting_that_is_neither_on_nor_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERDUPER_TRACES", "maybe")
    with pytest.raises(InvalidInput, match="SUPERDUPER_TRACES='maybe': it is on or off"):
        tracer_of_settings()


class Collector(BaseHTTPRequestHandler):
    """Takes what OpenTelemetry's exporter sends."""

    received: list[bytes] = []

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_spans_are_sent_where_the_environment_says(store_uri: str, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        arguments = ("serve", "--uri", store_uri, "--port", "0", "--json", "--insecure")
        environment = {
            "SUPERDUPER_TRACES": "on",
            "SUPERDUPER_DATABASE": "traced",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_SERVICE_NAME": "our-server",
        }
        with running(tmp_path / "log", *arguments, **environment) as server:
            with server.http() as http:
                assert http.get("/healthz").status_code == 200
            assert server.end() == 0
        until(lambda: b"".join(Collector.received), what="the spans")
        collector.shutdown()
    sent = b"".join(Collector.received)
    assert b"GET /healthz" in sent and b"our-server" in sent
