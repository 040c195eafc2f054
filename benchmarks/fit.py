"""Training on digits for a fixed number of steps, against the same loop on tensors in memory."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits

from benchmarks.place import store, until, worker

BATCH = 64
HIDDEN = 128


class Network(torch.nn.Module):
    """Two layers on 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores for a batch."""
        return self.layers(x)

    def postprocess_batch(self, rows: Sequence[torch.Tensor]) -> list[int]:
        """The best class of each row."""
        return torch.stack(tuple(rows)).argmax(-1).tolist()


def right(predicted: int, true: int) -> bool:
    """Whether a prediction is right."""
    return predicted == true


def _by_hand(x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    """Steps per second of a plain loop that validates after each epoch, as ours does."""
    torch.set_num_threads(1)
    model, loss = Network(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    cut = int(0.8 * len(x))
    done, started = 0, time.perf_counter()
    while done < steps:
        model.train()
        for rows in torch.randperm(cut).split(BATCH):
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
            done += 1
            if done >= steps:
                break
        model.eval()
        with torch.no_grad():
            output = model(x[cut:])
            loss(output, y[cut:]).item()
            predicted = output.argmax(-1).tolist()
            sum(right(p, t) for p, t in zip(predicted, y[cut:].tolist(), strict=True))
    return done / (time.perf_counter() - started)


def run(small: bool) -> dict[str, Any]:
    """Steps per second while training, and seconds for the whole fit."""
    steps = 2_000 if small else 20_000
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images).float() / 16
    y = torch.tensor(labels)
    by_hand = _by_hand(x, y, steps)
    with store() as client, worker(client.address):
        docs = client["bench"]["docs"]
        docs.insert_many([{"x": row, "y": int(label)} for row, label in zip(x, y, strict=True)])
        docs.create_model("network", Network())
        docs.create_loss("loss", torch.nn.CrossEntropyLoss())
        docs.create_metric("accuracy", right)
        started = time.perf_counter()
        imputation = docs.create_imputation(
            model="network",
            model_key="x",
            target_key="y",
            loss="loss",
            metrics=["accuracy"],
            batch_size=BATCH,
            max_steps=steps,
            max_epochs=steps,
            patience=steps,
            seed=0,
            watcher=False,
        )
        marks: list[tuple[float, int]] = []

        def done() -> bool:
            state = imputation.show()
            if state["status"] == "failed":
                raise RuntimeError(state["error"]["message"])
            progress = (state["fit"] or {}).get("progress") or {}
            if progress.get("phase") == "training":
                marks.append((time.perf_counter(), progress["done"]))
            return bool(state["status"] == "ready")

        until(done, "the fit", pause=0.05)
        seconds = time.perf_counter() - started
        accuracy = imputation.show()["metrics"]["accuracy"]
    moved = [mark for mark in marks if mark[1] != marks[0][1]]
    ours = (moved[-1][1] - moved[0][1]) / (moved[-1][0] - moved[0][0])
    return {
        "steps": steps,
        "steps_per_second": {"by hand": round(by_hand), "ours": round(ours)},
        "ratio": ours / by_hand,
        "seconds_for_the_whole_fit": seconds,
        "accuracy": accuracy,
    }
