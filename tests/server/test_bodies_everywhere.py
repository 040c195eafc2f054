"""Every route that reads a body refuses what is malformed, over a real connection."""

import re
from collections.abc import Iterator

import httpx2
import pytest

MARK = "zzecho" * 40
# A value that no body may hold, as it stands in JSON.
VALUES = {
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "beyond floats": "1e999",
    "lone surrogate": '"\\ud800"',
    "integer of 5,000 digits": "1" * 5000,
    "integer of 64 bits and one": "9223372036854775808",
    "NUL in a key": '{"a\\u0000b": 1}',
    "depth 1,000": "[" * 1000 + "]" * 1000,
    "depth 100,000": "[" * 100_000 + "]" * 100_000,
    "a key twice": '{"b": 1, "b": 2}',
    "operator": '{"$where": "1"}',
    "bad UTF-8": b'"\xff\xfe"',
}
# Where it stands: as a value of a field that is known to the predictions, and of one that is not.
BODIES = {
    "v1": b'{"inputs": [[1.0, %s]], "' + MARK.encode() + b'": 1}',
    "v2": b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, %s]}]}',
    "anywhere": b'{"' + MARK.encode() + b'": %s}',
    "a field twice": b'{"inputs": [%s], "inputs": [[1.0]]}',
}
NAMES = {"collection": "docs", "name": "double", "model": "docs.double", "version": "1"}
ANSWERS = {400, 404, 413, 415, 422}
# What is JSON all the same, and in a field that nobody reads; predictions and documents refuse it.
PLAIN = {"integer of 5,000 digits", "integer of 64 bits and one", "NUL in a key", "operator"}
PLAIN |= {"depth 1,000"}
REPOSITORY = "/v2/repository/"


def sent(body: bytes, value: str | bytes) -> bytes:
    return body.replace(b"%s", value if isinstance(value, bytes) else value.encode())


def routes(http: httpx2.Client) -> Iterator[tuple[str, str]]:
    """Method and path of every route that may have a body, of models that are there."""
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        url = path
        for name in re.findall(r"\{(\w+)\}", path):
            known = {} if path.startswith(REPOSITORY) else NAMES  # nothing is to be unloaded
            url = url.replace(f"{{{name}}}", known.get(name, "thing"))
        for method in methods:
            if method in ("post", "put", "patch"):
                yield method, url


@pytest.mark.parametrize("value", VALUES)
def test_malformed_values_get_a_4xx_on_every_route(models_url: str, value: str) -> None:
    asked = 0
    with httpx2.Client(base_url=models_url, timeout=60) as http:
        for method, url in routes(http):
            for name, body in BODIES.items():
                content = sent(body, VALUES[value])
                headers = {"Content-Type": "application/json"}
                answer = http.request(method, url, content=content, headers=headers)
                where = (method, url, name, answer.status_code, answer.text[:300])
                ignored = (
                    url.startswith(REPOSITORY) and value in PLAIN and answer.status_code == 200
                )
                assert answer.status_code in ANSWERS or ignored, where
                assert len(answer.content) < 2048 and MARK not in answer.text, where
                asked += 1
    assert asked > 100
