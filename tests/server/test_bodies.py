"""Malformed, oversized and endless bodies: the right 4xx, never a 500, never an echo."""

import asyncio
import json
import struct
from collections.abc import Iterator
from typing import Any

import bson
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from superduper.errors import TimedOut, TooLarge, TooManyRequests
from superduper.service import Service
from superduper_server import bodies
from superduper_server.app import build_app
from superduper_server.limits import BodyLimit, Limits
from tests.server.running import BASE_URL

DOCUMENTS = "/v1/collections/docs/documents"
JSON = "application/json"
BSON = "application/bson"
LONG = b"x" * 5000


def documents(value: bytes) -> bytes:
    return b'{"documents": [{"a": ' + value + b"}]}"


def deep_bson(levels: int) -> bytes:
    inner = bson.encode({})
    for _ in range(levels):
        size = 4 + 1 + 2 + len(inner) + 1
        inner = struct.pack("<i", size) + b"\x03a\x00" + inner + b"\x00"
    return inner


CASES: dict[str, tuple[str, bytes, int]] = {
    "empty": (JSON, b"", 422),
    "not JSON": (JSON, b"{" + LONG, 400),
    "a list": (JSON, b"[]", 400),
    "a number": (JSON, b"3", 400),
    "two values": (JSON, b"{} {}", 400),
    "bad UTF-8": (JSON, documents(b'"\xff\xfe"'), 400),
    "NaN": (JSON, documents(b"NaN"), 400),
    "Infinity": (JSON, documents(b"-Infinity"), 400),
    "1e999": (JSON, documents(b"1e999"), 400),
    "lone surrogate": (JSON, documents(b'"\\ud800"'), 400),
    "lone surrogate in a key": (JSON, b'{"documents": [{"\\udfff": 1}]}', 400),
    "integer of 64 bits and one": (JSON, documents(b"9223372036854775808"), 400),
    "negative one": (JSON, documents(b"-9223372036854775809"), 400),
    "integer of 100 digits": (JSON, documents(b"1" * 100), 400),
    "integer of 5000 digits": (JSON, documents(b"1" * 5000), 400),
    "NUL in a key": (JSON, b'{"documents": [{"a\\u0000b": 1}]}', 422),
    "NUL in a field": (JSON, b'{"docu\\u0000ments": []}', 422),
    "depth 65": (JSON, documents(b'{"a":' * 65 + b"1" + b"}" * 65), 422),
    "depth 900": (JSON, documents(b"[" * 900 + b"]" * 900), 422),
    "depth 50000": (JSON, documents(b"[" * 50_000 + b"]" * 50_000), 400),
    "depth 900 and a long number": (
        JSON,
        documents(b"[" * 900 + b"0.1234567890123456789" + b"]" * 900),
        422,
    ),
    "a key twice": (JSON, documents(b'{"b": 1, "b": 2}'), 400),
    "a key twice, spelt differently": (JSON, documents(b'{"b": 1, "\\u0062": 2}'), 400),
    "a field twice": (JSON, b'{"documents": [{"a": 1}], "documents": [{"a": 2}]}', 400),
    "a key twice behind a long integer": (
        JSON,
        documents(b'{"b": 1' + b"1" * 18 + b', "b": 2}'),
        400,
    ),
    "a key twice beside what looks like keys": (
        JSON,
        documents(b'{"b\\":": ":", "c": 1, "c":2}'),
        400,
    ),
    "operator in a document": (JSON, documents(b'{"$where": "1"}'), 422),
    "unknown extended JSON": (JSON, documents(b'{"$regularExpression": {}}'), 422),
    "bad id": (JSON, documents(b'{"$oid": "xyz"}'), 422),
    "bad base64": (JSON, documents(b'{"$binary": {"base64": "%", "subType": "00"}}'), 422),
    "number too long for extended JSON": (JSON, documents(b'{"$numberLong": "1e5"}'), 422),
    "tensor of a wrong size": (
        JSON,
        documents(b'{"dtype": "float32", "shape": [1000000000000, 64], "data": "AAAA"}'),
        422,
    ),
    "documents of a wrong type": (JSON, b'{"documents": "all"}', 422),
    "no documents": (JSON, b'{"documents": []}', 422),
    "a long wrong value": (JSON, b'{"documents": "' + LONG + b'"}', 422),
    "a long unknown field": (JSON, b'{"' + LONG + b'": 1}', 422),
    "empty BSON": (BSON, b"", 422),
    "not BSON": (BSON, LONG, 400),
    "BSON cut short": (BSON, bson.encode({"documents": [{"a": 1}]})[:-3], 400),
    "BSON of a wrong length": (BSON, b"\xff\xff\xff\x7f\x00", 400),
    "BSON with more behind it": (BSON, bson.encode({}) + b"x", 400),
    "BSON depth 65": (BSON, bson.encode({"documents": [bson.decode(deep_bson(65))]}), 422),
    "BSON depth 9000": (BSON, deep_bson(9000), 400),
    "operator in BSON": (BSON, bson.encode({"documents": [{"a": {"$gt": 1}}]}), 422),
    "text": ("text/plain", b"{}", 415),
    "form": ("application/x-www-form-urlencoded", b"documents=1", 415),
    "multipart": ("multipart/form-data; boundary=x", b"--x--", 415),
    "no type": ("", b'{"documents": [{}]}', 415),
}


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_body_gets_its_4xx(client: TestClient, case: str) -> None:
    kind, body, status = CASES[case]
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post(DOCUMENTS, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "request_id"}
    assert error["code"] == "invalid_input"
    assert len(answer.content) < 2048
    assert LONG[:100].decode() not in answer.text


@pytest.mark.parametrize(
    "text",
    [
        b'":"',
        b'"\\":"',
        b'[":", "b\\": "]',
        b'{"\\"": ":"}',
        b'{"b\\\\": {"b": [{"b": 1}]}}',
        b'"\\\\"',
    ],
)
def test_what_only_looks_like_the_same_key_twice_is_taken(client: TestClient, text: bytes) -> None:
    answer = client.post(DOCUMENTS, content=documents(text), headers={"Content-Type": JSON})
    assert answer.status_code == 201, answer.text
    found = client.post(f"{DOCUMENTS}/query", json={}).json()["documents"][0]["a"]
    assert found == json.loads(text)


def test_more_values_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_VALUES", 1000)
    for many in (b"0," * 1000 + b"0", b"[]," * 500 + b"[]", b"{}," * 500 + b"{}"):
        with pytest.raises(TooLarge, match="1000 values"):
            bodies.read_body(JSON, b'{"inputs": [' + many + b"]}")
    text = b'{"inputs": ["' + b"x" * 2000 + b'"]}'
    assert bodies.read_body(JSON, text) == {"inputs": ["x" * 2000]}


@pytest.mark.parametrize("id", [{"$ne": None}, {"$gt": 0}, bson.Regex(".*")])
def test_no_operator_comes_in_by_bson(client: TestClient, id: Any) -> None:
    client.post(DOCUMENTS, json={"documents": [{"_id": 1, "y": "secret"}]})
    body = bson.encode({"id": id, "field": "y"})
    answer = client.post(f"{DOCUMENTS}/explain", content=body, headers={"Content-Type": BSON})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["message"].startswith("id: ")


def test_malformed_filters_get_theirs(client: TestClient) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = {"$not": deep}
    filters: list[Any] = [
        {"$where": "sleep(1)"},
        {"x": {"$regex": "(a+)+$"}},
        {"x": deep},
        {"x": {"$gt": float(2**70), "$where": 1}},
        {"$and": {}},
        [],
        "x",
        None,
    ]
    for filter in filters:
        answer = client.post(f"{DOCUMENTS}/query", json={"filter": filter})
        assert answer.status_code == 422, (filter, answer.text)


def test_a_charset_is_no_other_type(client: TestClient) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post(f"{DOCUMENTS}/count", content=b"{}", headers=headers).status_code == 200


def test_long_numbers_with_a_fraction_are_numbers(client: TestClient) -> None:
    body = documents(b"0.12345678901234567890123")
    answer = client.post(DOCUMENTS, content=body, headers={"Content-Type": JSON})
    assert answer.status_code == 201


def test_the_largest_integers_are_taken(client: TestClient) -> None:
    body = documents(b"[9223372036854775807, -9223372036854775808]")
    answer = client.post(DOCUMENTS, content=body, headers={"Content-Type": JSON})
    assert answer.status_code == 201
    found = client.post(f"{DOCUMENTS}/query", json={}).json()["documents"][0]["a"]
    assert found == [2**63 - 1, -(2**63)]


class TestSize:
    """Bodies larger than the limit of the fixture: 200,000 bytes."""

    def test_a_declared_size_is_refused_at_once(self, client: TestClient) -> None:
        answer = client.post(DOCUMENTS, content=b" " * 200_001, headers={"Content-Type": JSON})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_large"
        assert "SUPERDUPER_BODY_LIMIT_MB" in answer.json()["error"]["message"]
        assert answer.headers["connection"] == "close"

    def test_the_limit_itself_is_taken(self, client: TestClient) -> None:
        body = documents(b'"' + b"x" * 150_000 + b'"').ljust(200_000)
        answer = client.post(DOCUMENTS, content=body, headers={"Content-Type": JSON})
        assert answer.status_code == 201

    def test_an_undeclared_size_is_counted(self, client: TestClient) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(300):
                yield b" " * 1000

        answer = client.post(DOCUMENTS, content=chunks(), headers={"Content-Type": JSON})
        assert answer.status_code == 413

    def test_compressed_bodies_are_not_taken(self, client: TestClient) -> None:
        headers = {"Content-Type": JSON, "Content-Encoding": "gzip"}
        assert client.post(DOCUMENTS, content=b"{}", headers=headers).status_code == 415

    def test_a_stranger_cannot_send_at_all(self, stranger: TestClient) -> None:
        answer = stranger.post(DOCUMENTS, content=b" " * 200_001)
        assert answer.status_code == 401


def test_a_document_over_16_mb(service: Service) -> None:
    wide = build_app(service, insecure=True, limits=Limits(body_bytes=40_000_000))
    with TestClient(wide, base_url=BASE_URL) as reached:
        body = bson.encode({"documents": [{"a": b"x" * 17_000_000}]})
        answer = reached.post(DOCUMENTS, content=body, headers={"Content-Type": BSON})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


def test_a_body_that_never_comes_is_given_up() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    parts = [{"type": "http.request", "body": b"x", "more_body": True}]

    async def receive() -> Any:
        if parts:
            return parts.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        raise AssertionError

    limited = BodyLimit(app, Limits(receive_seconds=0.05))
    with pytest.raises(TimedOut, match="not there after 0.05"):
        asyncio.run(limited({"type": "http", "headers": []}, receive, send))


def test_large_bodies_wait_their_turn() -> None:
    most = Limits(all_bodies_bytes=1000)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        entered.set()
        await go_on.wait()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 600, "more_body": False}

    async def send(message: Any) -> None:
        raise AssertionError

    async def scene() -> None:
        limited = BodyLimit(app, most)
        scope = {"type": "http", "headers": []}
        first = asyncio.create_task(limited(dict(scope), receive, send))
        await entered.wait()
        with pytest.raises(TooManyRequests, match="large requests"):
            await limited(dict(scope), receive, send)
        go_on.set()
        await first
        await limited(dict(scope), receive, send)

    asyncio.run(scene())


def test_no_error_is_a_500_with_words_from_inside(client: TestClient, app: FastAPI) -> None:
    def broken(command: Any, author: str) -> Any:
        raise ZeroDivisionError("secret of the house")

    service = app.state.backend.service
    service.handle = broken
    answer = client.get("/v1/status")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text
    assert answer.json()["error"]["request_id"] in answer.headers["x-request-id"]
