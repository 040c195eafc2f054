"""What is recorded of a run in its folder, and whether a folder's run may be gone on with."""

import fcntl
import logging
import platform
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from superduper.errors import InUse, InvalidInput, NotReady
from superduper.training.configs import Config, differences
from superduper.training.hashes import data_hash, model_hash, structure_hash
from superduper.training.loaders import as_arguments, size_of
from superduper.training.run_folder import RunFolder, load_epoch
from superduper.training.run_logs import Row, finite
from superduper.version import __version__

logger = logging.getLogger("superduper.training.run")

Data = Mapping[str, Mapping[str, Any]]


class RunRecord:
    """The file `run.json` of a folder, as it is filled."""

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder = folder
        self.config = config
        self.content: dict[str, Any] = {}
        self._ended: int | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder to one program at a time, and write its `train.log` meanwhile.

        Raises InUse if another program trains here, InvalidInput if it is no run's folder.
        """
        if self.folder.read("config.json") is None:
            self.folder.check_new()
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with self.folder.lock.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InUse(f"another program is training in {self.folder.path}") from error
            with _logged_to(self.folder.log):
                yield

    def begin(self, model: torch.nn.Module, data: Data, parent: Any) -> None:
        """Record that a run begins or goes on.

        Raises InvalidInput if the folder's run has other settings, another model or other data.
        """
        kept = self.folder.read("config.json")
        if kept is not None:
            self._check_config(kept)
        record = self.folder.read("run.json")
        if record is None:
            origin = None if parent is None else load_epoch(parent, model)
            record = _new_record(model, data, origin, self.config["seed"])
        else:
            _check_same(self.folder, record, model, data)
            record["data"].update({name: dict(part) for name, part in data.items()})
            self._ended = record["finished_at"] if record["status"] == "finished" else None
        self.content = {**record, "status": "running", "error": None}
        self.folder.write("config.json", self.config)
        self._write()

    def _check_config(self, kept: Config) -> None:
        differs = differences(kept, self.config)
        if differs:
            raise InvalidInput(
                f"{self.folder.path} holds a run with another config ({'; '.join(differs)}): "
                "choose another model_dir, or the same config to go on"
            )

    def finish(
        self,
        model: torch.nn.Module,
        reason: str,
        history: Sequence[Row],
        test: Mapping[str, float] | None,
    ) -> None:
        """Record that a run has ended well."""
        if test is not None:
            self.content["test"] = finite(test)
        self._end("finished", history, final_hash=model_hash(model), reason=reason)

    def fail(self, error: BaseException, history: Sequence[Row]) -> None:
        """Record that a run has ended otherwise."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        logger.info("training %s: %s: %s", status, type(error).__name__, error)
        text = {"type": type(error).__name__, "message": str(error)}
        try:
            self._end(status, history, error=text)
        except NotReady as unwritten:
            error.add_note(f"The run's record does not tell of it: {unwritten.message}")

    def _end(self, status: str, history: Sequence[Row], **fields: Any) -> None:
        rows = [finite(row) for row in history]
        # A finished run that was only called again ended when it did.
        same = status == "finished" and len(rows) == self.content["epochs"]
        at = self._ended if same else None
        ended = {
            "status": status,
            "epochs": len(rows),
            "history": rows,
            "finished_at": at or _now(),
        }
        self.content |= {**ended, **fields}
        self._write()

    def _write(self) -> None:
        self.folder.write("run.json", self.content)


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()


def describe_data(loader: Any, name: str, hashed: bool) -> dict[str, Any]:
    """The number of records behind a loader and their hash; None for what cannot be known."""
    data = getattr(loader, "dataset", loader)
    stream = isinstance(data, torch.utils.data.IterableDataset)
    if stream or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        return {"n": None, "hash": None}
    # A list of batches has no dataset: its records are those of the batches.
    n = len(data) if data is not loader else sum(size_of(as_arguments(each)) for each in data)
    if not hashed:
        return {"n": n, "hash": None}
    try:
        return {"n": n, "hash": data_hash(data)}
    except InvalidInput as error:
        raise InvalidInput(
            f"the {name} data: {error}; with hash_data false in the config it is not tried"
        ) from error


def _new_record(
    model: torch.nn.Module, data: Data, origin: dict[str, Any] | None, seed: int
) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "status": "running",
        "started_at": _now(),
        "finished_at": None,
        "seed": seed,
        "parent": origin,
        "data": {name: dict(part) for name, part in data.items()},
        "model": type(model).__name__,
        "structure": structure_hash(model),
        "initial_hash": model_hash(model),
        "final_hash": None,
        "device": str(next(model.parameters()).device),
        "versions": {
            "superduper": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "epochs": 0,
        "history": [],
        "test": {},
        "reason": None,
    }


def _check_same(
    folder: RunFolder, record: Mapping[str, Any], model: torch.nn.Module, data: Data
) -> None:
    structure = structure_hash(model)
    if record["structure"] != structure:
        raise InvalidInput(
            f"{folder.path} holds a run of another model: its weights' names and shapes have the "
            f"hash {record['structure']}, this model's {structure}"
        )
    for name in ("train", "validate"):
        before, now = record["data"].get(name), data.get(name)
        if before != now:
            raise InvalidInput(
                f"{folder.path} holds a run on other {name} data: it was {_of(before)}, is "
                f"{_of(now)}"
            )


def _of(part: Mapping[str, Any] | None) -> str:
    return "none" if part is None else f"{part['n']} records with the hash {part['hash']}"


def _now() -> int:
    return time.time_ns() // 1_000_000
