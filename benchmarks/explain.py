"""A thousand values of two fitted versions, each computed again from its stored version."""

import statistics
import time
from collections import Counter
from typing import Any

import torch

from benchmarks.place import DIM, store, until, vectors, worker


class Number(torch.nn.Module):
    """A number for each vector: its last bits depend on how many rows run at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(DIM, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number for each row."""
        return self.layers(x)[:, 0]


def run(small: bool) -> dict[str, Any]:
    """How many came again to the bit, in which batches, and how long one story takes."""
    count = 100 if small else 1_000
    with store() as client, worker(client.address):
        docs = client["bench"]["docs"]
        documents = vectors(count + 200)
        for document in documents[:200]:
            document["y"] = float(document["_id"] % 7)
        # Half of them are there before, in large batches; half come one by one.
        docs.insert_many(documents[: 200 + count // 2])
        docs.create_model("number", Number())
        docs.create_loss("squares", torch.nn.MSELoss())
        docs.create_imputation(
            model="number", model_key="x", target_key="y", loss="squares", max_epochs=3, seed=0
        ).wait(progress=False)
        for document in documents[200 + count // 2 :]:
            docs.insert_one(document)
        filled = {"_fill.y.version": {"$exists": True}}
        until(lambda: docs.count_documents(filled) == count, "the fills")
        stories, times = [], []
        for document in documents[200:]:
            began = time.perf_counter()
            stories.append(docs.explain(document["_id"], "y"))
            times.append(time.perf_counter() - began)
    derived = [story["derived"] for story in stories]
    return {
        "fills": count,
        "identical": sum(each["identical"] is True for each in derived),
        "batches": dict(sorted(Counter(str(each.get("batch")) for each in derived).items())),
        "milliseconds": {
            "p50": 1000 * statistics.median(times),
            "max": 1000 * max(times[1:]),
        },
    }
