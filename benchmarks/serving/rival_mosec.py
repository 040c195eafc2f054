"""mosec with one of the models: `python rival_mosec.py PORT`, MODEL in the environment."""

import os
import sys
from typing import Any

import numpy as np
import torch
from models import SIZES, Mlp
from mosec import Server, Worker


class Inference(Worker):
    """Batches of JSON rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)
        self.model = Mlp(SIZES[os.environ["MODEL"]]).eval()

    def forward(self, data: list[Any]) -> list[Any]:
        """A batch of requests."""
        rows = np.array([each["inputs"][0] for each in data], np.float32)
        with torch.inference_mode():
            output = self.model(torch.from_numpy(rows))
        return [{"outputs": [row]} for row in output.tolist()]


if __name__ == "__main__":
    sys.argv.insert(1, "--port")  # its own way to be told
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=64, max_wait_time=1)
    server.run()
