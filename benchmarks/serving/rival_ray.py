"""Ray Serve with one of the models: `python rival_ray.py PORT`, MODEL in the environment."""

import os
import signal
import sys
from typing import Any

import numpy as np
import ray
import torch
from models import SIZES, Mlp
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=1000)
class Api:
    """Batches of JSON rows."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        torch.set_num_threads(1)
        self.model = Mlp(sizes).eval()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def predict(self, rows: list[Any]) -> list[Any]:
        """The forward pass."""
        with torch.inference_mode():
            output: list[Any] = self.model(torch.from_numpy(np.array(rows, np.float32))).tolist()
        return output

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One request."""
        asked = await request.json()
        return {"outputs": [await self.predict(asked["inputs"][0])]}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    ray.init(include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Api.bind(SIZES[os.environ["MODEL"]]), route_prefix="/predict")
    signal.pause()
