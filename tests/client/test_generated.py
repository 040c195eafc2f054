"""A client in another language, generated from our description by OpenAPI Generator, in use."""

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

import superduper_client
from superduper_server.serve import make_server
from tests.server.running import serving

NEEDED = ("java", "bash", "curl")

pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in NEEDED)
    or find_spec("openapi_generator_cli") is None,
    reason=f"needs {', '.join(NEEDED)} and the package openapi-generator-cli",
)


def generate(description: Path, folder: Path) -> Path:
    """The client that is generated for bash."""
    spec = find_spec("openapi_generator_cli")
    assert spec is not None and spec.origin is not None
    jar = Path(spec.origin).parent / "openapi-generator.jar"
    subprocess.run(
        [
            *("java", "-XX:TieredStopAtLevel=1", "-jar", str(jar), "generate"),
            *("-g", "bash", "-i", str(description), "-o", str(folder)),
            *("--additional-properties", "scriptName=client"),
        ],
        check=True,
        capture_output=True,
        timeout=240,
    )
    return folder / "client"


def test_a_generated_client_inserts_finds_and_predicts(
    database: Database[Any], tmp_path: Path
) -> None:
    with serving(make_server(database)) as server:
        token = server.backend.tokens.create("trainer")["token"]
        with superduper_client.connect(server.url, token) as ours:
            ours[database.name]["docs"].create_model("double", lambda n: n * 2)
        description = tmp_path / "openapi.json"
        fetched = subprocess.run(
            ["curl", "-s", f"{server.url}/openapi.json"], check=True, capture_output=True
        )
        description.write_bytes(fetched.stdout)
        client = generate(description, tmp_path / "generated")

        def call(operation: str, *fields: str) -> Any:
            done = subprocess.run(
                [
                    *("bash", str(client), "-s", "--host", server.url, "-nc"),
                    *("-ac", "json", "-ct", "json", operation),
                    *(f"Authorization:Bearer {token}", "collection=docs", *fields),
                ],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return json.loads(done.stdout)

        made = call("insertDocuments", 'documents:=[{"_id": 1, "n": 4}, {"_id": 2, "n": 5}]')
        assert made == {"inserted_ids": [1, 2]}
        found = call("findDocuments", 'filter:={"n": {"$gt": 4}}')
        assert found == {"documents": [{"_id": 2, "n": 5}]}
        assert call("predict", "name=double", "inputs:=[1.5, 4]")["outputs"] == [3.0, 8]
        told = call("predictDocumentsOfModel", "name=double", "key==n", "ids:=[2]")
        assert told["documents"][0]["value"] == 10
        refused = call("predict", "name=nothing", "inputs:=[1]")
        assert refused["error"]["code"] == "not_found"
