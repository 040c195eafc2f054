"""MLServer with one of the models: `python rival_mlserver.py PORT`, MODEL in the environment.

The model is in the server's process, which is MLServer's cheapest form.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from models import SIZES, Mlp


class Runtime(MLModel):
    """Batches in the words of the Open Inference Protocol."""

    async def load(self) -> bool:
        """Load the model."""
        torch.set_num_threads(1)
        self.model = Mlp(SIZES[os.environ["MODEL"]]).eval()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The forward pass."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        with torch.inference_mode():
            output = self.model(torch.from_numpy(rows)).numpy()
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("output", output)]
        )


if __name__ == "__main__":
    port = int(sys.argv[1])
    settings = {"host": "127.0.0.1", "http_port": port, "parallel_workers": 0, "debug": False}
    settings |= {"grpc_port": int(sys.argv[2]), "metrics_port": int(sys.argv[3])}
    model = {"name": "model", "implementation": "rival_mlserver.Runtime"}
    model |= {"max_batch_size": 64, "max_batch_time": 0.002}
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = str(Path(sys.executable).with_name("mlserver"))
    os.execv(command, [command, "start", str(folder)])
