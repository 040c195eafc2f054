"""LitServe with one of the models: `python rival_litserve.py PORT`, MODEL in the environment."""

import os
import sys

import litserve
import numpy as np
import torch
from models import SIZES, Mlp


class Api(litserve.LitAPI):
    """Batches of JSON rows."""

    def setup(self, device: str) -> None:
        """Load the model."""
        torch.set_num_threads(1)
        self.model = Mlp(SIZES[os.environ["MODEL"]]).eval()

    def decode_request(self, request: dict) -> np.ndarray:
        """One row."""
        return np.array(request["inputs"][0], np.float32)

    def batch(self, inputs: list) -> torch.Tensor:
        """Rows to a batch."""
        return torch.from_numpy(np.stack(inputs))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """The forward pass; without batching a row comes alone."""
        with torch.inference_mode():
            return self.model(torch.as_tensor(x))

    def unbatch(self, output: torch.Tensor) -> list:
        """A batch to rows."""
        return output.tolist()

    def encode_response(self, output: list) -> dict:
        """One answer."""
        return {"outputs": [output]}


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(
        port=int(sys.argv[1]), host="127.0.0.1", log_level="error", generate_client_file=False
    )
