"""The Open Inference Protocol on the wire, against a real server."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

FP32 = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}
INFER = "/v2/models/docs.double/infer"


@pytest.fixture(scope="module")
def http(models_url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=models_url, timeout=60) as client:
        yield client


def binary(asked: dict[str, Any], *blobs: bytes) -> dict[str, Any]:
    """A request with the binary tensor extension."""
    head = json.dumps(asked).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    return {"content": b"".join([head, *blobs]), "headers": headers}


def test_health_has_bodies(http: httpx2.Client) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2/models/docs.double/ready").json() == {
        "name": "docs.double",
        "ready": True,
    }
    assert http.get("/v2/models/docs.double/versions/1/ready").status_code == 200


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_describes_itself(http: httpx2.Client, path: str) -> None:
    told = http.get(path).json()
    assert told["name"] == "superduper"
    assert told["version"]
    assert "binary_tensor_data" in told["extensions"]


def test_metadata_has_real_names_datatypes_and_shapes(http: httpx2.Client) -> None:
    assert http.get("/v2/models/docs.double").json() == {
        "name": "docs.double",
        "versions": ["1"],
        "platform": "superduper",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}],
    }
    told = http.get("/v2/models/docs.describe/versions/1").json()
    assert told["inputs"] == [
        {"name": "name", "datatype": "BYTES", "shape": [-1]},
        {"name": "numbers", "datatype": "INT64", "shape": [-1, 2]},
    ]
    assert told["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "weight", "datatype": "FP64", "shape": [-1]},
        {"name": "count", "datatype": "INT64", "shape": [-1]},
        {"name": "more", "datatype": "BYTES", "shape": [-1]},
    ]
    config = http.get("/v2/models/docs.double/config").json()
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [3]}]


def test_json_in_and_out(http: httpx2.Client) -> None:
    asked = {"id": "7", "inputs": [{**FP32, "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6.5]}]}
    answer = http.post(INFER, json=asked)
    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "docs.double",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "output", "datatype": "FP32", "shape": [2, 3], "data": [2, 4, 6, 8, 10, 13.0]}
        ],
    }
    nested = {"inputs": [{**FP32, "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6.5]]}]}
    assert http.post(INFER, json=nested).json()["outputs"] == answer.json()["outputs"]


def test_fields_go_in_and_out_as_tensors(http: httpx2.Client) -> None:
    asked = {
        "inputs": [
            {"name": "numbers", "datatype": "INT64", "shape": [2, 2], "data": [[1, 2], [3, 4]]},
            {"name": "name", "datatype": "BYTES", "shape": [2], "data": ["ä", "b"]},
        ],
        "outputs": [{"name": "more"}, {"name": "label"}, {"name": "weight"}],
    }
    answer = http.post("/v2/models/docs.describe/infer", json=asked).json()
    found = {each["name"]: (each["datatype"], each["data"]) for each in answer["outputs"]}
    assert list(found) == ["more", "label", "weight"]
    assert found["label"] == ("BYTES", ["ää", "bb"])
    assert found["weight"] == ("FP64", [3.0, 7.0])
    assert [json.loads(text) for text in found["more"][1]] == [{"a": [None]}] * 2
    asked["inputs"].pop(0)
    refused = http.post("/v2/models/docs.describe/infer", json=asked)
    assert refused.status_code == 400
    assert "'numbers' is missing: the model takes name, numbers" in refused.json()["error"]


def test_binary_in_and_out_mixed_with_json(http: httpx2.Client) -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    tensor = {
        "name": "input",
        "datatype": "FP32",
        "shape": [2, 3],
        "parameters": {"binary_data_size": len(data)},
    }
    answer = http.post(INFER, **binary({"inputs": [tensor]}, data))
    assert answer.json()["outputs"][0]["data"] == [0, 2, 4, 6, 8, 10]
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    answer = http.post(INFER, **binary(asked, data))
    size = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:size])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 24}
    assert np.frombuffer(answer.content[size:], "<f4").tolist() == [0, 2, 4, 6, 8, 10]
    text = struct.pack("<I", 2) + "ä".encode()
    asked = {
        "inputs": [
            {
                "name": "name",
                "datatype": "BYTES",
                "shape": [1],
                "parameters": {"binary_data_size": 6},
            },
            {"name": "numbers", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]},
        ],
        "outputs": [{"name": "label", "parameters": {"binary_data": True}}, {"name": "count"}],
    }
    answer = http.post("/v2/models/docs.describe/infer", **binary(asked, text))
    size = int(answer.headers["inference-header-content-length"])
    assert answer.content[size:] == struct.pack("<I", 4) + "ää".encode()
    assert json.loads(answer.content[:size])["outputs"][1]["data"] == [3]


def test_raw_binary(http: httpx2.Client) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    data = np.arange(6, dtype="<f4").tobytes()
    answer = http.post(INFER, content=data, headers=headers)
    size = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:size])["outputs"][0]["shape"] == [2, 3]
    assert np.frombuffer(answer.content[size:], "<f4").tolist() == [0, 2, 4, 6, 8, 10]
    for body in (b"", data[:-1]):
        answer = http.post(INFER, content=body, headers=headers)
        assert answer.status_code == 400
        assert "no whole number of rows" in answer.json()["error"]
    answer = http.post("/v2/models/docs.loose/infer", content=data, headers=headers)
    assert answer.status_code == 400


def test_a_model_without_a_sample_takes_what_comes(http: httpx2.Client) -> None:
    path = "/v2/models/docs.loose"
    assert http.get(path).json()["inputs"] == []
    answer = http.post(f"{path}/infer", json={"inputs": [{**FP32, "name": "anything"}]})
    assert answer.json()["outputs"][0]["data"] == [2, 4, 6]
    answer = http.post(
        f"{path}/infer",
        json={
            "inputs": [{**FP32, "datatype": "FP64", "shape": [1, 1, 3]}],
            "outputs": [{"name": "x"}],
        },
    )
    assert answer.status_code == 400
    assert "no output 'x'" in answer.json()["error"]


def test_rows_of_nothing_are_rows_and_not_too_many(http: httpx2.Client) -> None:
    path = "/v2/models/docs.loose/infer"
    for datatype in ("BYTES", "FP32", "INT64"):
        empty = {"name": "x", "datatype": datatype, "shape": [2, 0], "data": []}
        answer = http.post(path, json={"inputs": [empty]})
        assert answer.status_code == (400 if datatype == "BYTES" else 200), answer.text
        for rows in (10_001, 2**47):
            answer = http.post(path, json={"inputs": [{**empty, "shape": [rows, 0]}]})
            assert answer.status_code == 400
            assert f"{rows} rows: at most 10000 are taken" in answer.json()["error"]
    rows = {"name": "x", "datatype": "UINT8", "shape": [20_000], "data": [1] * 20_000}
    assert http.post(path, json={"inputs": [rows]}).status_code == 400
    raw = {"Inference-Header-Content-Length": "0"}
    answer = http.post(INFER, content=bytes(12 * 10_001), headers=raw)
    assert "10001 rows: at most 10000" in answer.json()["error"]


def with_input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**FP32, **changes}]}


WRONG: list[tuple[Any, str]] = [
    ("{", "not valid JSON"),
    ("[]", "one JSON object"),
    ("", "not valid JSON"),
    ({}, "inputs: must be a list"),
    ({"inputs": []}, "at least one tensor"),
    ({"inputs": [3]}, "each must be an object"),
    ({"id": 3, "inputs": [FP32]}, "id: must be a string"),
    (with_input(data=None), "must be a list"),
    (with_input(datatype="FLOAT"), "unknown datatype 'FLOAT'"),
    (with_input(datatype=["FP32"]), "unknown datatype"),
    (with_input(datatype="FP64"), "the model takes FP32, not FP64"),
    ({"inputs": [FP32, {**FP32, "name": "other"}]}, "no input 'other'"),
    (with_input(name="other"), "no input 'other': it takes input"),
    ({"inputs": [FP32, FP32]}, "given twice"),
    (with_input(shape=[1, 2]), "needs 2 elements, its data has 3"),
    (with_input(shape=[3]), "the model takes shape [-1, 3]"),
    (with_input(shape=[1, 1, 3]), "the model takes shape [-1, 3]"),
    (with_input(shape=[-1, 3]), "must be a list of 1 to 32 integers"),
    (with_input(shape=[True, 3]), "must be a list of 1 to 32 integers"),
    (with_input(shape=[0, 3], data=[]), "no rows"),
    (with_input(shape=[10**12, 64]), "elements"),
    (with_input(shape=[2, 3], data=[[1, 2, 3], [4, 5]]), "not nested as shape"),
    (with_input(data=[[[1, 2, 3]]]), "not nested as shape"),
    (with_input(data=["1", "2", "3"]), "not of FP32"),
    (with_input(data=[1, None, 3]), "not of FP32"),
    (with_input(data=[1, 2, 1e300]), "does not fit FP32"),
    ({"inputs": [FP32], "outputs": [{"name": "nothing"}]}, "no output 'nothing'"),
    ({"inputs": [FP32], "outputs": [{}]}, "an object with a name"),
    ({"inputs": [FP32], "parameters": 3}, "parameters: must be an object"),
    (
        {"inputs": [{**FP32, "parameters": {"shared_memory_region": "x"}}]},
        "shared memory is not supported",
    ),
    (with_input(data=[1.0, 13.0, 3.0]), "13 is not allowed"),
]


@pytest.mark.parametrize(("asked", "why"), WRONG)
def test_every_error_has_the_protocols_form(http: httpx2.Client, asked: Any, why: str) -> None:
    content = asked if isinstance(asked, str) else json.dumps(asked)
    headers = {"Content-Type": "application/json"}
    answer = http.post(INFER, content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json().keys() == {"error"}
    assert why in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "size", "blob", "why"),
    [
        ("99999", 12, b"", "must be the length of the JSON"),
        ("-1", 12, b"", "must be the length of the JSON"),
        ("x", 12, b"", "must be the length of the JSON"),
        (None, 12, b"a" * 8, "binary_data_size is 12, but 8 bytes are left"),
        (None, -1, b"a" * 12, "binary_data_size is -1"),
        (None, 12, b"a" * 16, "tell of 12"),
        (None, 8, b"a" * 8, "needs 12 bytes of data, not 8"),
    ],
)
def test_binary_data_must_be_what_it_claims(
    http: httpx2.Client, length: str | None, size: int, blob: bytes, why: str
) -> None:
    tensor = {**FP32, "parameters": {"binary_data_size": size}}
    del tensor["data"]
    request = binary({"inputs": [tensor]}, blob)
    if length is not None:
        request["headers"]["Inference-Header-Content-Length"] = length
    answer = http.post(INFER, **request)
    assert answer.status_code == 400
    assert why in answer.json()["error"]


def test_nan_goes_through_in_binary_and_is_refused_in_json(http: httpx2.Client) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    data = np.array([np.nan, 1, np.inf], "<f4").tobytes()
    answer = http.post(INFER, content=data, headers=headers)
    assert answer.content.endswith(np.array([np.nan, 2, np.inf], "<f4").tobytes())
    tensor = {**FP32, "parameters": {"binary_data_size": 12}}
    del tensor["data"]
    answer = http.post(INFER, **binary({"inputs": [tensor]}, data))
    assert answer.status_code == 400
    assert "NaN or infinity" in answer.json()["error"]
    body = json.dumps(with_input(data=[1.0, float("nan"), 3.0]))
    answer = http.post(INFER, content=body, headers={"Content-Type": "application/json"})
    assert "not valid JSON" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/docs.nothing", 404),
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/docs.double/versions/9", 404),
        ("GET", "/v2/models/docs.double/versions/x", 400),
        ("POST", "/v2/models/docs.nothing/infer", 404),
        ("GET", "/v2/models/docs.nothing/ready", 404),
        ("GET", INFER, 405),
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2/repository/models/docs.nothing/load", 404),
    ],
)
def test_what_is_not_there(http: httpx2.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}


def test_a_page_of_another_site_gets_nothing(http: httpx2.Client) -> None:
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ):
        answer = http.post(INFER, content=json.dumps(with_input()), headers=headers)
        assert answer.status_code == 415
    for path in (INFER, "/v2/repository/models/docs.double/unload"):
        answer = http.post(path, json=with_input(), headers={"Origin": "http://evil.example"})
        assert answer.status_code == 403
    answer = http.post(INFER, json=with_input(), headers={"Origin": "http://127.0.0.1:1"})
    assert answer.status_code == 200


def test_index_load_and_unload(http: httpx2.Client) -> None:
    ready = {"name": "docs.loose", "version": "1", "state": "READY", "reason": ""}
    index = http.post("/v2/repository/index").json()
    assert [row["name"] for row in index] == ["docs.describe", "docs.double", "docs.loose"]
    assert ready in index
    unloaded = http.post("/v2/repository/models/docs.loose/unload")
    assert (unloaded.status_code, unloaded.json()) == (200, {})
    told = http.get("/v2/models/docs.loose/ready")
    assert (told.status_code, told.json()["ready"]) == (503, False)
    answer = http.post("/v2/models/docs.loose/infer", json=with_input())
    assert answer.status_code == 503
    assert "has been unloaded" in answer.json()["error"]
    names = [row["name"] for row in http.post("/v2/repository/index", json={"ready": True}).json()]
    assert names == ["docs.describe", "docs.double"]
    assert http.post("/v2/repository/models/docs.loose/load", json={}).status_code == 200
    assert http.post("/v2/models/docs.loose/infer", json=with_input()).status_code == 200
    assert ready in http.post("/v2/repository/index", json={}).json()


def test_figures_of_models(http: httpx2.Client) -> None:
    for _ in range(2):
        assert http.post(INFER, json=with_input()).status_code == 200
    [told] = http.get("/v2/models/docs.double/stats").json()["model_stats"]
    assert (told["name"], told["version"]) == ("docs.double", "1")
    assert told["inference_count"] >= told["execution_count"] >= 2
    stats = told["inference_stats"]
    assert stats["compute_infer"]["count"] >= 2
    assert stats["compute_infer"]["ns"] > 0
    names = {row["name"] for row in http.get("/v2/models/stats").json()["model_stats"]}
    assert "docs.double" in names
    text = http.get("/metrics").text
    model = 'model="docs/model/double@1"'
    for stage in ("queue", "preprocess", "forward", "postprocess"):
        assert f'superduper_model_stage_seconds_bucket{{le="+Inf",{model},stage="{stage}"}}' in text
    assert f"superduper_model_batch_rows_count{{{model}}}" in text
    assert f"superduper_model_waiting{{{model}}} 0.0" in text
    assert f"superduper_model_memory_bytes{{{model}}} 0.0" not in text


def test_a_version_is_pinned_by_the_path(http: httpx2.Client) -> None:
    answer = http.post("/v2/models/docs.double/versions/1/infer", json=with_input())
    assert answer.json()["model_version"] == "1"
    assert http.post("/v2/models/docs.double/versions/2/infer", json={}).status_code == 404
