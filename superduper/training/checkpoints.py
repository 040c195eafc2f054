"""Checkpoints of a run in a folder: safetensors and JSON, no pickle; whole or not there.

Each is a folder `checkpoint-<step>` with `state.json` (plain values), `tensors.safetensors` and
`manifest.json` (the SHA-256 of both). It is written under another name, flushed to disk and then
renamed; older ones are removed after that. One that is torn or altered is passed over.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load, save

from superduper.errors import InvalidInput, NotReady
from superduper.training.checkpoint_files import MANIFEST, PARTS, PREFIX, manifest
from superduper.training.policies import Policy

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in a folder, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: Mapping[str, Any], *, lasting: bool = False) -> Path:
        """Write a checkpoint; when this returns, it is on the disk. A lasting one is never removed.

        Raises NotReady if it fails, for want of space say; the earlier ones are as they were.
        """
        unfinished = self.folder / f".{PREFIX}{step}"
        try:
            return self._save(unfinished, step, state, lasting)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise NotReady(
                f"the checkpoint of step {step} could not be saved in {self.folder}: {error}; the "
                "one before it is whole: make room and train again to go on from there"
            ) from error

    def _save(self, unfinished: Path, step: int, state: Mapping[str, Any], lasting: bool) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        hashes = {}
        for name, data in zip(PARTS, packed(state), strict=True):
            _write(unfinished / name, data)
            hashes[name] = sha256(data).hexdigest()
        _write(unfinished / MANIFEST, manifest(step, hashes, lasting=lasting))
        _flush(unfinished)
        final = self.folder / f"{PREFIX}{step}"
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        _flush(self.folder)
        self._prune(step)
        return final

    def _prune(self, step: int) -> None:
        """Leave the newest up to a step; one beyond it was damaged, and not gone on from."""
        found = self._all()
        beyond = [path for path in found if _step_of(path) > step]
        for path in beyond + found[len(beyond) + self.keep :]:
            if not _is_lasting(path):
                shutil.rmtree(path)

    def latest(self) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint; None if there is none at all.

        Raises InvalidInput if there are some and all are damaged.
        """
        found = self._all()
        for path in found:
            try:
                return _read(path)
            except (OSError, ValueError, KeyError) as error:
                logger.warning("%s is damaged and passed over: %s", path, error)
        if found:
            raise InvalidInput(
                f"the checkpoints in {self.folder} are all damaged, and there is nothing to go on "
                "from: to begin anew, choose another folder or remove this one"
            )
        return None

    def _all(self) -> list[Path]:
        listed = self.folder.glob(f"{PREFIX}*")
        found = [path for path in listed if path.name.removeprefix(PREFIX).isdigit()]
        return sorted(found, key=_step_of, reverse=True)


class Checkpointing(Policy):
    """Saves a checkpoint after every epoch and, where `every_steps` is given, within them.

    Those of every `lasting_epochs`-th epoch are kept for good.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every_steps: int | None = None,
        lasting_epochs: int | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self.every_steps = every_steps or math.inf
        self.lasting_epochs = lasting_epochs or math.inf

    def step_finished(self, engine: Any, step: int) -> None:
        """Save, if it is time."""
        if step % self.every_steps == 0:
            self.checkpoints.save(step, engine.state_dict())

    def epoch_finished(self, engine: Any, epoch: int, step: int) -> None:
        """Save."""
        lasting = epoch % self.lasting_epochs == 0
        self.checkpoints.save(step, engine.state_dict(), lasting=lasting)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _is_lasting(path: Path) -> bool:
    """Whether a checkpoint is kept for good; a damaged one is not."""
    try:
        return bool(json.loads((path / MANIFEST).read_bytes()).get("lasting"))
    except (OSError, ValueError):
        return False


def _read(path: Path) -> dict[str, Any]:
    written = json.loads((path / MANIFEST).read_bytes())
    parts = [(path / name).read_bytes() for name in PARTS]
    for name, data in zip(PARTS, parts, strict=True):
        if sha256(data).hexdigest() != written["sha256"][name]:
            raise ValueError(f"{name} is not what was written")
    state: dict[str, Any] = unpacked(*parts)
    return state


def packed(state: Any) -> tuple[bytes, bytes]:
    """A state as JSON, and its tensors as safetensors."""
    tensors: dict[str, torch.Tensor] = {}
    plain = json.dumps(_plain(state, tensors, "")).encode()
    return plain, save(tensors)


def unpacked(plain: bytes, tensors: bytes) -> Any:
    """The state that was packed."""
    return _rich(json.loads(plain), load(tensors))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """A state as JSON has it: tensors by name, tuples and keys that are no text marked."""
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}:{path}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(value, numpy.generic):
        value = value.item()
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biuf":
        return {"$array": _plain(torch.from_numpy(value.copy()), tensors, path)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _plain(each, tensors, f"{path}/{key}") for key, each in value.items()}
        items = [[key, _plain(each, tensors, f"{path}/{key}")] for key, each in value.items()]
        return {"$items": items}
    if isinstance(value, list | tuple):
        listed = [_plain(each, tensors, f"{path}/{i}") for i, each in enumerate(value)]
        return {"$tuple": listed} if isinstance(value, tuple) else listed
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise InvalidInput(
        f"{path or 'the state'} is a {type(value).__name__}: a state is made of tensors, numbers, "
        "arrays, texts, lists and dicts"
    )


def _rich(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    match value:
        case {"$tensor": name}:
            return tensors[name]
        case {"$array": tensor}:
            return _rich(tensor, tensors).numpy()
        case {"$items": items}:
            return {key: _rich(each, tensors) for key, each in items}
        case {"$tuple": listed}:
            return tuple(_rich(each, tensors) for each in listed)
        case dict():
            return {key: _rich(each, tensors) for key, each in value.items()}
        case list():
            return [_rich(each, tensors) for each in value]
    return value
