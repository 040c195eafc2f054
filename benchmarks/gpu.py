"""A GPU: training and predictions beside hand-written loops on it, and beside the CPU."""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bson.binary import Binary, BinaryVectorDtype
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.place import CLASSES, DIM, store
from benchmarks.training.loops_of_ours import CrossEntropyTrainer
from superduper.devices import device_of
from superduper.imputations.hosting import launch
from superduper.serving.host import ModelHost
from superduper.store.artifacts import ArtifactStore
from superduper.store.registry import Registry
from superduper.store.signing import Keyring
from superduper.training import TorchModel, train_model

WIDTH = 4_096
BATCH = 1_024
EPOCHS = 4
ROUNDS = 3
LR = 0.01
FRAME = 256


class Network(torch.nn.Module):
    """64 to 10 by two wide layers; marks when some forward passes begin, all before them done."""

    def __init__(self, marked: tuple[int, int] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(DIM, WIDTH),
            torch.nn.ReLU(),
            torch.nn.Linear(WIDTH, WIDTH),
            torch.nn.ReLU(),
            torch.nn.Linear(WIDTH, CLASSES),
        )
        self.marked = marked
        self.steps = 0
        self.marks: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores for a batch."""
        if self.marked and self.training:
            self.steps += 1
            if self.steps in self.marked:
                torch.cuda.synchronize()
                self.marks.append(time.perf_counter())
        scores: torch.Tensor = self.layers(x)
        return scores


def _by_hand(network: Network, batches: Callable[[], Iterator[Any]]) -> None:
    network.cuda()
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    for _ in range(EPOCHS):
        for x, y in batches():
            optimizer.zero_grad()
            loss(network(x.cuda(non_blocking=True)), y.cuda(non_blocking=True)).backward()
            optimizer.step()


def _contestants(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[Network], None]]:
    on_gpu = x.cuda(), y.cuda()

    def loader(pinned: bool = False) -> DataLoader[Any]:
        return DataLoader(TensorDataset(x, y), BATCH, shuffle=True, pin_memory=pinned)

    def rows_on_gpu() -> Iterator[Any]:
        shuffled = torch.randperm(len(x), device="cuda")
        return ((on_gpu[0][rows], on_gpu[1][rows]) for rows in shuffled.split(BATCH))

    def trainer(network: Network) -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = {"model_dir": folder, "n_epochs": EPOCHS, "seed": 0, "device": "auto"}
            network.cuda()
            optimizer = torch.optim.SGD(network.parameters(), lr=LR)
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                CrossEntropyTrainer(loader(), None, network, optimizer, config).train()

    def by_train_model(network: Network) -> None:
        network.cuda()
        optimizer = torch.optim.SGD(network.parameters(), lr=LR)
        loss = torch.nn.CrossEntropyLoss()
        model = TorchModel(network, torch.nn.Softmax(-1), loss, optimizer, device="cuda")
        train_model(model, loader(), n_epochs=EPOCHS, lr=LR)

    return {
        "DataLoader": lambda network: _by_hand(network, lambda: iter(loader())),
        "DataLoader, pinned": lambda network: _by_hand(network, lambda: iter(loader(True))),
        "all records on the GPU": lambda network: _by_hand(network, rows_on_gpu),
        "superduper, Trainer": trainer,
        "superduper, train_model": by_train_model,
    }


def _training(records: int) -> dict[str, Any]:
    """Microseconds by the clock of a step, without the first epoch; medians of the rounds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(records, DIM, generator=generator)
    y = (x @ torch.randn(DIM, CLASSES, generator=generator)).argmax(1)
    steps = records // BATCH
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, train in _contestants(x, y).items():
            network = Network((steps + 1, EPOCHS * steps))
            train(network)
            first, last = network.marks
            taken.setdefault(name, []).append((last - first) / ((EPOCHS - 1) * steps - 1) * 1e6)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    bare = medians["DataLoader"]
    return {
        "microseconds_per_step": medians,
        "ratio_to_DataLoader": {name: each / bare for name, each in medians.items()},
    }


def _predictions(rows: int) -> dict[str, Any]:
    """Rows a second through a model's process, on the GPU and on a CPU, and without a process."""
    network = Network().eval()
    numbers = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(1))
    values = [Binary.from_vector(row, BinaryVectorDtype.FLOAT32) for row in numbers.tolist()]
    speeds: dict[str, list[float]] = {}
    with store() as client, contextlib.ExitStack() as stack:
        docs = client["bench"]["docs"]
        docs.create_model("network", network)
        database = client._mongo["bench"]
        registry = Registry(database, ArtifactStore(database, Keyring.open()))
        component = registry.get("docs", "model", "network")

        def hosted(device: str) -> Callable[[], object]:
            os.environ["SUPERDUPER_DEVICE"] = device
            host = ModelHost(registry.payload(component), "network", launch)
            stack.callback(host.close)
            host.predict(values[:FRAME])
            del os.environ["SUPERDUPER_DEVICE"]
            return lambda: len(host.predict(values))

        def bare() -> None:
            with torch.no_grad():
                for part in numbers.split(FRAME):
                    on_gpu(part.cuda()).cpu()

        on_gpu = Network().eval().cuda()
        bare()
        asked = {"superduper, GPU": hosted("auto"), "superduper, CPU": hosted("cpu"), "bare": bare}
        for _ in range(ROUNDS):
            for name, ask in asked.items():
                began = time.perf_counter()
                ask()
                speeds.setdefault(name, []).append(rows / (time.perf_counter() - began))
    return {"rows_a_second": {name: statistics.median(each) for name, each in speeds.items()}}


def run(small: bool) -> dict[str, Any]:
    """A network of 17 million weights; batches of 1,024 in training, frames of 256 to predict."""
    device_of("cuda")
    torch.set_num_threads(1)
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "training": _training(20_000 if small else 200_000),
        "predictions": _predictions(2_560 if small else 10_240),
    }
