"""BentoML with one of the models: `python rival_bentoml.py PORT`, MODEL in the environment."""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import torch
from bentoml.validators import DType
from models import SIZES, Mlp


@bentoml.service(workers=1, traffic={"timeout": 60})
class Api:
    """Batches of JSON rows, with BentoML's own adaptive wait."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = Mlp(SIZES[os.environ["MODEL"]]).eval()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=60_000)
    def predict(
        self, inputs: Annotated[np.ndarray, DType("float32")]
    ) -> Annotated[np.ndarray, DType("float32")]:
        """The forward pass; a list of rows comes out, with nothing around it."""
        with torch.inference_mode():
            return self.model(torch.from_numpy(np.array(inputs))).numpy()


if __name__ == "__main__":
    command = str(Path(sys.executable).with_name("bentoml"))
    options = ["--port", sys.argv[1], "--host", "127.0.0.1", "--quiet"]
    os.execv(command, [command, "serve", "rival_bentoml:Api", *options])
