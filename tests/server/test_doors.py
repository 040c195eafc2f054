"""Three doors lead to a prediction: the fast lane, the fast path, the ordinary route."""

import gc
import json
import socket
from typing import Any

import bson
import httpx2
import numpy as np
import pytest

from superduper.fields.tensors import encode_array
from superduper.serving.batches import Request
from superduper.serving.blocks import Block, floats
from superduper_server import fast_lane
from superduper_server.fast import Head, Work
from superduper_server.fast_lane import Heads
from superduper_server.models import Place
from superduper_server.predict import SMALL_BYTES, Ticket, _texts
from superduper_server.serve import Server
from superduper_server.v2_tensors import DTYPES
from tests.server.raw import connected, receive_answer, request_to
from tests.waiting import until

V1 = "/v1/collections/docs/models/double/predict"
V2 = "/v2/models/docs.double/infer"
V1_LOOSE = "/v1/collections/docs/models/loose/predict"
LOOSE = "/v2/models/docs.loose/infer"
JSON = {"Content-Type": "application/json"}
BSON = {"Content-Type": "application/bson", "Accept": "application/bson"}
TENSOR = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}


def asked(content: Any, **headers: str) -> tuple[bytes, dict[str, str]]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return body, {**JSON, **headers}


def tensor_of(datatype: str, *shape: int) -> tuple[bytes, dict[str, str]]:
    """A binary tensor of zeros and ones, whose answer is wanted in binary too."""
    dtype = "<u2" if datatype == "BF16" else DTYPES[datatype]
    data = (np.arange(np.prod(shape)) % 2).astype(dtype).tobytes()
    size = {"binary_data_size": len(data)}
    tensor = {"name": "input", "datatype": datatype, "shape": shape, "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


CORPUS: list[tuple[str, bytes, dict[str, str]]] = [
    (V1, *asked({"inputs": [[1.0, 2.0, 3.0]]})),
    (V1, *asked({"inputs": [[1.1, 2.2, 3.3], [4, 5, 6], [0.1, 0.2, 1e300]]})),
    (V1, *asked({"inputs": []})),
    (V1, *asked({"inputs": [[13.0, 0.0, 0.0], [1.0, 2.0, 3.0]]})),
    (V1, *asked({"inputs": [[13.0, 0.0, 0.0]]})),
    (V1, *asked({"inputs": [[1.0, 2.0], [1.0, 2.0, 3.0], "text", None]})),
    (V1, *asked({"inputs": 3})),
    (V1, *asked({"inputs": [[1.0]], "version": 1, "more": 2})),
    (V1, *asked({"inputs": [[1.0, 2.0, 3.0]], "version": 1})),
    (V1, *asked({"inputs": [[1.0, 2.0, 3.0]], "version": 9})),
    (V1, *asked({})),
    (V1, *asked(b"{")),
    (V1, *asked(b"")),
    (V1, *asked(b'{"inputs": [[1.0, NaN, 3.0]]}')),
    (V1, *asked({"inputs": [[1.0]]}, **{"Content-Type": "text/plain"})),
    (V1, *asked({"inputs": [[1.0]]}, **{"Content-Encoding": "gzip"})),
    (V1 + "?x=1", *asked({"inputs": [[1.0]]})),
    (V1, bson.encode({"inputs": [[1.0, 2.0, 3.0]]}), BSON),
    (V1, b"no bson", BSON),
    (V1.replace("double", "nothing"), *asked({"inputs": [[1.0]]})),
    (V1.replace("/predict", "/versions/1/predict"), *asked({"inputs": [[1.0, 2.0, 3.0]]})),
    (V1.replace("/predict", "/versions/9/predict"), *asked({"inputs": [[1.0, 2.0, 3.0]]})),
    (V1.replace("/predict", "/versions/x/predict"), *asked({"inputs": [[1.0, 2.0, 3.0]]})),
    ("/v1/collections/docs/imputations/nothing/predict", *asked({"inputs": [[1.0]]})),
    (V2, *asked({"inputs": [TENSOR]})),
    (V2, *asked({"inputs": [TENSOR], "id": "a", "outputs": [{"name": "output"}]})),
    (V2, *asked({"inputs": [{**TENSOR, "shape": [10**12, 64]}]})),
    (V2, *asked({"inputs": [{**TENSOR, "data": [13, 0, 0]}]})),
    (V2, *asked({"inputs": [TENSOR], "parameters": {"binary_data_output": True}})),
    (V2, np.ones(6, "<f4").tobytes(), {"Inference-Header-Content-Length": "0"}),
    (V2.replace("/infer", "/versions/1/infer"), *asked({"inputs": [TENSOR]})),
    (V2.replace("double", "nothing"), *asked({"inputs": [TENSOR]})),
    (V2, *asked({"inputs": [TENSOR]}, Origin="http://evil.example")),
    (LOOSE, *asked({"inputs": [{**TENSOR, "shape": [1, 3, 1], "datatype": "INT64"}]})),
    (LOOSE, *asked({"inputs": [{**TENSOR, "shape": [3, 1], "datatype": "FP64"}]})),
    (V1_LOOSE, bson.encode({"inputs": [encode_array(np.ones((2, 3), "i2"))] * 2}), BSON),
    (V1_LOOSE, bson.encode({"inputs": [encode_array(np.ones((2, 3))), {"dtype": "x"}]}), BSON),
    (V1_LOOSE, *asked({"inputs": [[[1, 2], [3, 4]]]})),
    *[(LOOSE, *tensor_of(each, *shape)) for each in DTYPES for shape in ((2, 3), (3, 2, 2))],
]


def ask(http: httpx2.Client, path: str, body: Any, headers: Any) -> Any:
    sent = httpx2.Headers(headers)
    sent["X-Request-ID"] = "same"
    answer = http.post(path, content=body, headers=sent)
    kept = {k: v for k, v in answer.headers.items() if k not in ("date", "connection")}
    return answer.status_code, kept, answer.content


def unusual(headers: dict[str, str]) -> list[tuple[str, str]]:
    """The same with a header that is there twice, which is nothing for the short ways."""
    return [*headers.items(), ("X-Twice", "1"), ("X-Twice", "2")]


def test_every_door_gives_the_same_bytes(
    models_server: Server, plain_server: tuple[str, Any]
) -> None:
    plain_url, plain_fast = plain_server
    lane_fast = models_server.config.app.state.fast  # type: ignore[union-attr]
    begun = {"lane": 0, "path": 0}
    with (
        httpx2.Client(base_url=models_server.url, timeout=60) as lane,
        httpx2.Client(base_url=plain_url, timeout=60) as path,
    ):
        for url, body, headers in CORPUS:
            wanted = ask(lane, url, body, unusual(headers))
            ask(path, url, body, headers)  # now it is known what the path stands for
            before = lane_fast.begun, plain_fast.begun
            assert ask(lane, url, body, headers) == wanted, (url, body)
            assert ask(lane, url, iter([body]), headers) == wanted, (url, body, "in chunks")
            assert ask(path, url, body, headers) == wanted, (url, body)
            begun["lane"] += (lane_fast.begun - before[0]) // 2
            begun["path"] += plain_fast.begun - before[1]
    # Not all: on a slow machine what was looked up may be too old when the request comes.
    assert min(begun.values()) >= 20, "most of the corpus is for the short ways"


def test_as_many_processes_as_there_are_give_the_same_bytes(
    models_server: Server, models_url: str
) -> None:
    with (
        httpx2.Client(base_url=models_server.url, timeout=60) as one,
        httpx2.Client(base_url=models_url, timeout=60) as first,
        httpx2.Client(base_url=models_url, timeout=60) as second,
    ):
        for url, body, headers in CORPUS:
            wanted = ask(one, url, body, unusual(headers))
            for http in (first, second):
                assert ask(http, url, body, headers) == wanted, (url, body)
                assert ask(http, url, iter([body]), headers) == wanted, (url, body)


def test_what_was_answered_leaves_nothing_to_be_collected(models_server: Server) -> None:
    def left() -> int:
        return sum(type(each) in (Ticket, Work, Request) for each in gc.get_objects())

    gc.collect()
    before = left()
    gc.disable()
    try:
        with httpx2.Client(base_url=models_server.url, timeout=60) as http:
            body = json.dumps({"inputs": [[1.0, 2.0, 3.0]]}).encode()
            for number in range(40):
                headers = JSON if number % 2 else unusual(JSON)
                assert ask(http, V1, body, headers)[0] == 200
        assert left() <= before + 4  # of the last ones, whose answers are on their way
    finally:
        gc.enable()


def test_pipelined_requests_are_answered_in_order(models_server: Server) -> None:
    host, port = models_server.url.removeprefix("http://").split(":")
    requests = b""
    for number in range(6):
        path = V1 if number % 3 else "/healthz"
        method = "POST" if number % 3 else "GET"
        body = json.dumps({"inputs": [[float(number)] * 3]}).encode() if number % 3 else b""
        requests += (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: n{number}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(requests)
        received = b""
        while received.count(b"x-request-id") < 6 or not received.endswith(b"}"):
            received += connection.recv(65536)
    order = [received.index(f"x-request-id: n{number}".encode()) for number in range(6)]
    assert order == sorted(order)
    assert b'"outputs":[[2.0,2.0,2.0]]' in received
    assert b'"outputs":[[10.0,10.0,10.0]]' in received


@pytest.mark.parametrize("waits", [False, True])
def test_a_request_in_pieces_has_a_moment_for_the_short_way(
    models_server: Server, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_lane, "PATIENCE_SECONDS", 0.0 if waits else 60.0)
    body = json.dumps({"inputs": [[1.0, 2.0, 3.0]]}).encode()
    fast = models_server.config.app.state.fast  # type: ignore[union-attr]
    with connected(models_server) as connection:
        connection.sendall(request_to(V1, body)[:-10])
        if waits:
            until(lambda: models_server.server_state.tasks, what="the application has it")
        connection.sendall(body[-10:-5])
        before = fast.begun
        assert receive_answer(connection, body[-5:]).endswith(
            b'"outputs":[[2.0,4.0,6.0]],"version":1}'
        )
        assert fast.begun - before == (0 if waits else 1)
        assert receive_answer(connection, request_to(V1, body)).endswith(b'"version":1}')


def test_one_row_is_written_as_it_is_among_others() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (200, 8), dtype=np.uint32)
    rows = bits.view("<f4")  # of all sizes
    rows[np.isnan(rows)] = np.nan
    layout = floats(8)
    alone = [text for row in rows for text in _texts(Block(layout, row.tobytes()))]
    assert alone == _texts(Block(layout, rows.tobytes()))


def test_chunks_of_any_number_are_one_body(models_server: Server) -> None:
    fast = models_server.config.app.state.fast  # type: ignore[union-attr]
    body = json.dumps({"inputs": [[1.0, 2.0, 3.0]]}).encode()
    with connected(models_server) as connection:
        until(
            lambda: receive_answer(connection, request_to(V1, body)) and fast.begun,
            what="the short way",
        )
        before = fast.begun
        for size in (1, 7, 1000):
            answer = receive_answer(connection, in_chunks(V1, body, size))
            assert answer.endswith(b'"outputs":[[2.0,4.0,6.0]],"version":1}')
        assert fast.begun > before


def test_chunks_of_more_than_a_small_body_go_the_ordinary_way(models_server: Server) -> None:
    fast = models_server.config.app.state.fast  # type: ignore[union-attr]
    rows = [[1.0, 2.0, 3.0]] * 5000
    body = json.dumps({"inputs": rows}).encode()
    assert len(body) > SMALL_BYTES
    with connected(models_server) as connection:
        before = fast.begun
        answer = receive_answer(connection, in_chunks(V1, body, 999))
        assert answer.count(b"[2.0,4.0,6.0]") == len(rows)
        assert fast.begun == before
        answer = receive_answer(connection, in_chunks(V1, body[:100], 30))
        assert b"400 Bad Request" in answer or b"422" in answer  # that is no JSON


def in_chunks(path: str, body: bytes, size: int) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join([b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b"")])
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks


def test_who_leaves_in_the_middle_of_a_request_leaves_nothing(
    models_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_lane, "PATIENCE_SECONDS", 60.0)
    with connected(models_server) as connection:
        here = connection.getsockname()

        def is_there() -> bool:
            return any(each.client == here for each in models_server.server_state.connections)

        connection.sendall(request_to(V1, b'{"inputs": [[1.0, 2.0, 3.0]]}')[:-1])
        until(is_there, what="the connection")
    until(lambda: not is_there(), what="its end")


@pytest.mark.parametrize(
    ("version", "header"),
    [("1.0", "X: y"), ("1.1", "Connection: close"), ("1.1", "Expect: 100-continue")],
)
def test_what_is_unusual_is_left_to_uvicorn_and_answered(
    models_server: Server, version: str, header: str
) -> None:
    data = request_to(V1, b'{"inputs": [[1.0, 2.0, 3.0]]}', header)
    data = data.replace(b"HTTP/1.1", b"HTTP/" + version.encode())
    with connected(models_server) as connection:
        assert receive_answer(connection, data).endswith(b'{"outputs":[[2.0,4.0,6.0]],"version":1}')
        if "Expect" not in header:
            assert connection.recv(1) == b""  # and the connection is closed, as was asked


class TestHeads:
    """A head that was parsed is known by its bytes, and by nothing less."""

    BODY = b'{"inputs": [[1.0, 2.0, 3.0]]}'
    HEAD = Head(Place("/p", "c", "n"), {})

    def noted(self, data: bytes, length: int, head: Head = HEAD) -> Heads:
        heads = Heads()
        heads.note(data, head, length)
        return heads

    def test_the_same_head_is_known_with_another_body(self) -> None:
        heads = self.noted(request_to(V1, self.BODY), len(self.BODY))
        other = self.BODY.replace(b"1", b"7")
        assert heads.find(request_to(V1, other)) == (self.HEAD, other)

    @pytest.mark.parametrize(
        "data",
        [
            request_to(V1, BODY) + b"x",
            request_to(V1, BODY)[:-1],
            b"\r\n" + request_to(V1, BODY),
            request_to(V1, BODY, "X: y"),
            request_to(V1, BODY) * 2,
            request_to(V2, BODY),
            b"",
            b"\r\n\r\n",
        ],
    )
    def test_what_differs_is_not_known(self, data: bytes) -> None:
        assert self.noted(request_to(V1, self.BODY), len(self.BODY)).find(data) is None

    def test_what_will_not_come_again_is_not_kept(self) -> None:
        once = Head(self.HEAD.place, {"x-request-id": "1"})
        data = request_to(V1, self.BODY, "X-Request-ID: 1")
        assert self.noted(data, len(self.BODY), once).find(data) is None
        long = request_to(V1, self.BODY, "X: " + "y" * 2000)
        assert self.noted(long, len(self.BODY)).find(long) is None
        two = request_to(V1, self.BODY) * 2
        assert self.noted(two, len(self.BODY)).find(request_to(V1, self.BODY)) is None

    def test_a_head_that_announces_its_end_within_the_body_is_not_kept(self) -> None:
        body = b"a\r\n\r\nb"
        data = request_to(V1, body).replace(b"\r\n", b"\n", 5)
        assert self.noted(data, len(body)).find(data) is None


def test_a_known_head_is_answered_as_one_that_is_parsed(models_server: Server) -> None:
    host, port = models_server.url.removeprefix("http://").split(":")
    heads = models_server.config.http.heads  # type: ignore[union-attr]
    said = []
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for number in range(4):
            body = json.dumps({"inputs": [[float(number), 2.0, 3.0]]}).encode()
            data = request_to(V1, body)
            said.append((heads.find(data) is not None, receive_answer(connection, data)))
    assert [known for known, _ in said][-1], "by now it was parsed"
    for number, (_, answer) in enumerate(said):
        assert answer.endswith(b'{"outputs":[[%.1f,4.0,6.0]],"version":1}' % (number * 2))
    assert len({b"\r\n".join(sorted(names_of(answer))) for _, answer in said}) == 1


def names_of(answer: bytes) -> list[bytes]:
    return [line.partition(b":")[0] for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n")]
