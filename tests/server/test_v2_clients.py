"""Clients that others wrote for the Open Inference Protocol, unchanged, against a real server."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.errors.bad_request_error import BadRequestError
from open_inference.openapi.types.inference_request import InferenceRequest
from open_inference.openapi.types.request_input import RequestInput
from tritonclient.utils import InferenceServerException

from benchmarks import environment

HERE = Path(__file__).parent
ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def client(models_url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(
        models_url.removeprefix("http://"), network_timeout=60
    ) as client:
        yield client


def test_tritons_client_asks_about_everything(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("docs.double")
    assert client.is_model_ready("docs.double", "1")
    assert not client.is_model_ready("docs.nothing")
    assert client.get_server_metadata()["name"] == "superduper"
    assert client.get_model_metadata("docs.double")["inputs"][0]["datatype"] == "FP32"
    assert client.get_model_config("docs.double")["max_batch_size"] == 64
    assert client.get_inference_statistics("docs.double")["model_stats"] is not None
    assert {"docs.double", "docs.loose"} <= {
        row["name"] for row in client.get_model_repository_index()
    }


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_tritons_client_infers(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None
) -> None:
    tensor = triton.InferInput("input", [2, 3], "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary_in)
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput("output", binary_data=binary_out)]
    result = client.infer("docs.double", [tensor], outputs=outputs, request_id="a")
    np.testing.assert_array_equal(result.as_numpy("output"), ROWS * 2)
    assert result.get_response()["id"] == "a"


def test_tritons_client_sends_text_and_gets_errors(client: triton.InferenceServerClient) -> None:
    name = triton.InferInput("name", [1], "BYTES")
    name.set_data_from_numpy(np.array(["ä"], dtype=np.object_))
    numbers = triton.InferInput("numbers", [1, 2], "INT64")
    numbers.set_data_from_numpy(np.array([[1, 2]]), binary_data=False)
    result = client.infer("docs.describe", [name, numbers])
    assert result.as_numpy("label").tolist() == ["ää".encode()]
    assert result.as_numpy("weight").tolist() == [3.0]
    with pytest.raises(InferenceServerException, match="is missing"):
        client.infer("docs.describe", [name])
    with pytest.raises(InferenceServerException, match="has no model 'nothing'"):
        client.get_model_metadata("docs.nothing")


def test_tritons_client_loads_and_unloads(client: triton.InferenceServerClient) -> None:
    client.unload_model("docs.loose")
    assert not client.is_model_ready("docs.loose")
    client.load_model("docs.loose")
    assert client.is_model_ready("docs.loose")


def test_the_working_groups_client(models_url: str) -> None:
    with httpx.Client(timeout=60) as http:
        ask_everything(OpenInferenceClient(base_url=models_url, httpx_client=http))


def ask_everything(client: OpenInferenceClient) -> None:
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness("docs.double")
    client.check_model_version_readiness("docs.double", "1")
    assert client.read_server_metadata().name == "superduper"
    assert client.read_model_metadata("docs.double").versions == ["1"]
    tensor = RequestInput(name="input", shape=[1, 3], datatype="FP32", data=[1.0, 2.0, 3.0])
    asked = InferenceRequest(inputs=[tensor])
    answer = client.model_infer("docs.double", request=asked)
    assert answer.outputs[0].data.__root__ == [2.0, 4.0, 6.0]
    assert client.model_version_infer("docs.double", "1", request=asked).outputs == answer.outputs
    with pytest.raises(ApiError, match="404"):
        client.read_model_metadata("docs.nothing")
    tensor = RequestInput(name="input", shape=[1, 3], datatype="FP32", data=[1.0])
    with pytest.raises(BadRequestError):
        client.model_infer("docs.double", request=InferenceRequest(inputs=[tensor]))


@pytest.fixture(scope="module")
def kserve() -> str:
    """A Python that has KServe's client; made once for each checkout, which takes a minute."""
    if found := os.environ.get("SUPERDUPER_TEST_KSERVE"):
        return found
    folder, wanted = environment.ROOT / ".kserve", HERE / "kserve.txt"
    try:
        return environment.python(folder, wanted, "--retries", "1", "--no-compile")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"KServe's client cannot be installed here: {error.stderr[-300:]}")


def test_kserves_client(models_url: str, kserve: str) -> None:
    program = HERE / "kserve_client.py"
    done = subprocess.run(
        [kserve, str(program), models_url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["live", "ready", "model", "json", "binary", "error"]
