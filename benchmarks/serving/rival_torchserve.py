"""TorchServe with one of the models: `python rival_torchserve.py PORTS`, MODEL in the environment.

Wants Java. The two other ports are those of management and metrics, which it always opens.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import SIZES, Mlp

QUIET = '<Configuration><Loggers><Root level="error"/></Loggers></Configuration>'


class Handler:
    """Batches of JSON rows."""

    def initialize(self, context: Any) -> None:
        """Load the model."""
        torch.set_num_threads(1)
        self.model = Mlp(SIZES[os.environ["MODEL"]]).eval()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """A batch of requests."""
        rows = np.array([each["body"]["inputs"][0] for each in data], np.float32)
        with torch.inference_mode():
            output = self.model(torch.from_numpy(rows))
        return [{"outputs": [row]} for row in output.tolist()]


def serve(folder: Path, ports: list[str]) -> None:
    """Make the archive that it wants, and become the server."""
    here, bin = Path(__file__).resolve(), Path(sys.executable).parent
    archiver = [str(bin / "torch-model-archiver"), "--model-name", "model", "--version", "1.0"]
    archiver += ["--handler", str(here), "--extra-files", str(here.with_name("models.py"))]
    subprocess.run([*archiver, "--export-path", str(folder)], check=True)
    batching = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 64, "maxBatchDelay": 2}
    models = {"model": {"1.0": {"defaultVersion": True, "marName": "model.mar", **batching}}}
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)]
    lines += ["load_models=model.mar", f"models={json.dumps(models)}", "job_queue_size=1000"]
    lines.append("disable_system_metrics=true")
    (folder / "config.properties").write_text("\n".join(lines))
    (folder / "log4j2.xml").write_text(QUIET)  # the others write no line for each request either
    options = ["--start", "--foreground", "--ncs", "--disable-token-auth"]
    options += ["--log-config", str(folder / "log4j2.xml")]
    options += ["--model-store", str(folder), "--ts-config", str(folder / "config.properties")]
    os.environ["LOG_LOCATION"] = os.environ["METRICS_LOCATION"] = str(folder)
    os.environ["PATH"] = f"{bin}:{os.environ['PATH']}"
    os.execv(str(bin / "torchserve"), ["torchserve", *options])


if __name__ == "__main__":
    serve(Path(tempfile.mkdtemp(prefix="torchserve-")), sys.argv[1:])
