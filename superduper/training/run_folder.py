"""A run's folder: its config, what is recorded of it, and the weights of its epochs.

config.json            settings, with the seed
run.json               hashes of data and model, parent, versions, results
models/epoch001.safetensors ...
checkpoints/           to go on from
train.log, metrics.csv, metrics.jsonl, tensorboard/
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from superduper.errors import InvalidInput, NotFound, NotReady
from superduper.training.weights import copy_of_state, weights_hash


class RunFolder:
    """Where a run keeps everything."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.models = self.path / "models"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.lock = self.path / ".lock"
        self.log = self.path / "train.log"
        self.csv = self.path / "metrics.csv"
        self.json_lines = self.path / "metrics.jsonl"

    def __repr__(self) -> str:
        try:
            record = self.read("run.json")
        except InvalidInput:
            return f"{str(self.path)!r}: damaged"
        if record is None:
            return f"{str(self.path)!r}: not begun"
        return f"{str(self.path)!r}: {record['status']}, {record['epochs']} epochs"

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder; None if it is not there.

        Raises InvalidInput if it cannot be read.
        """
        try:
            content = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InvalidInput(f"{self.path / name} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise InvalidInput(f"{self.path / name} is damaged: it holds no object")
        return content

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / name, json.dumps(content, indent=2).encode() + b"\n")

    def check_new(self) -> None:
        """Raise InvalidInput if the folder holds something, but no run."""
        mine = {self.lock, self.log}
        if self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - mine):
            raise InvalidInput(
                f"{self.path} holds something that is no run: choose another model_dir"
            )

    def save_epoch(self, model: torch.nn.Module, epoch: int, n_epochs: int) -> Path:
        """Keep the weights after an epoch."""
        self.models.mkdir(parents=True, exist_ok=True)
        state = copy_of_state(model)
        notes = {"epoch": str(epoch), "hash": weights_hash(state)}
        path = self.models / f"epoch{epoch:0{max(3, len(str(n_epochs)))}}.safetensors"
        write_whole(path, save(state, notes))
        return path

    def epochs(self) -> dict[int, Path]:
        """The epochs whose weights are kept, in order."""
        found = {int(path.stem[5:]): path for path in self.models.glob("epoch*.safetensors")}
        return dict(sorted(found.items()))

    def weights_of(self, epoch: int | None = None) -> Path:
        """The file of an epoch's weights; without a number, of the last one.

        Raises NotFound if it was not kept.
        """
        epochs = self.epochs()
        if not epochs:
            raise NotFound(f"{self.path} has no epoch's weights")
        wanted = max(epochs) if epoch is None else epoch
        if wanted not in epochs:
            raise NotFound(f"{self.path} has no epoch {wanted}; it has {list(epochs)}")
        return epochs[wanted]


def load_epoch(
    source: str | Path, model: torch.nn.Module, epoch: int | None = None
) -> dict[str, Any]:
    """Load weights into a model: of a run's folder (the last epoch, or the one named), or a file.

    Answers where they are from: path, epoch, hash, run.
    Raises NotFound if there are none, InvalidInput if they are another model's.
    """
    path = Path(source)
    folder = RunFolder(path if path.is_dir() else path.parent.parent)
    file = folder.weights_of(epoch) if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"there are no weights at {file}")
    state = load_file(file)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInput(f"{file} has the weights of another model: {error}") from error
    with safe_open(file, framework="pt") as opened:
        notes = opened.metadata() or {}
    # A file that was moved out of its run's folder no longer says which run it is of.
    kept = (folder.read("run.json") or {}) if file.parent == folder.models else {}
    number = int(notes["epoch"]) if "epoch" in notes else None
    return {
        "path": str(file),
        "epoch": number,
        "hash": weights_hash(state),
        "run": kept.get("id"),
    }


def runs_in(root: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs in a folder and in those below it, each with its record."""
    for path in sorted(Path(root).rglob("run.json")):
        record = RunFolder(path.parent).read("run.json")
        if record is not None:
            yield path.parent, record


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, flush it to disk, then rename it.

    Raises NotReady if it fails, for want of space say; what was there before is whole.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    with written(path):
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Raise NotReady, with what to do, if a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise NotReady(
            f"{path} could not be written: {error}; what was there before is whole: make room and "
            "try again (a training goes on from its newest checkpoint)"
        ) from error
