"""The processes of one training on one machine: how they are started, and how they talk.

    with leading(2, torch.device("cpu"), help, model) as group:
        ...

The caller leads; the others are started here, and each calls `help(group, model)` with a copy of
what it was given. They end with the leader, however it ends.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import bson
import torch
from torch import distributed

from superduper.errors import InvalidInput, SuperduperError, UserCodeError, error_of
from superduper.fields.sealing import seal
from superduper.training.checkpoints import packed, unpacked

WORK, MEETING, FAILED, READY, OUTPUT = "work.bson", "meeting", "failed-", "ready-", "output-"

# The others wait while the leader validates, however long that takes.
_PATIENCE = timedelta(days=7)
# How long the leader looks for what another process failed of when it no longer answers.
_LOOK_SECONDS = 2.0
_TURN_SECONDS = 0.02
_HEADER = 8  # bytes that say where a word's plain part ends
_QUOTED_CHARACTERS = 2000


@dataclass(frozen=True)
class Group:
    """The processes of a training, and which of them this is."""

    rank: int
    size: int
    device: torch.device
    #: On CPUs, for words: they need not wait for what a GPU is computing.
    words: Any

    @property
    def leads(self) -> bool:
        """Whether this is the process that has the policies and the data."""
        return self.rank == 0

    def told(self, word: Any = None) -> Any:
        """What the leader says; in the leader, say it. A word is what a checkpoint can hold."""
        content = _written(word) if self.leads else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(content)])
        distributed.broadcast(length, src=0, group=self.words)
        if not self.leads:
            content = torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(content, src=0, group=self.words)
        return word if self.leads else _read(content)

    def send(self, rank: int, word: Any) -> None:
        """Tell one process alone."""
        content = _written(word)
        distributed.send(torch.tensor([len(content)]), dst=rank, group=self.words)
        distributed.send(content, dst=rank, group=self.words)

    def receive(self, rank: int) -> Any:
        """What one process says to this one alone."""
        length = torch.tensor([0])
        distributed.recv(length, src=rank, group=self.words)
        content = torch.empty(int(length), dtype=torch.uint8)
        distributed.recv(content, src=rank, group=self.words)
        return _read(content)


def _written(word: Any) -> torch.Tensor:
    plain, tensors = packed(word)
    content = len(plain).to_bytes(_HEADER, "little") + plain + tensors
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _read(content: torch.Tensor) -> Any:
    data = content.numpy().tobytes()
    end = _HEADER + int.from_bytes(data[:_HEADER], "little")
    return unpacked(data[_HEADER:end], data[end:])


def joined(rank: int, size: int, device: torch.device, folder: Path) -> Group:
    """This process as one of a group, whose processes meet in a folder."""
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=(folder / MEETING).as_uri(),
        rank=rank,
        world_size=size,
    )
    return Group(rank, size, device, distributed.new_group(backend="gloo", timeout=_PATIENCE))


def several(processes: int | None) -> bool:
    """Whether a setting asks for more than one process.

    Raises InvalidInput for what is no number of processes.
    """
    if processes is None:
        return False
    if type(processes) is not int or processes < 1:
        raise InvalidInput(f"processes is {processes!r}: it must be a whole number of at least 1")
    return processes > 1


@contextlib.contextmanager
def leading(
    processes: int, device: torch.device, help: Callable[..., None], *arguments: Any
) -> Iterator[Group]:
    """Lead a group of so many processes, each of the others calling `help(group, *arguments)`.

    Where `device` is a GPU, each process has one of its own, the others from those that this
    process does not use; elsewhere they share the threads of this one.
    Raises InvalidInput for too few GPUs and for arguments that cannot be sealed, and what another
    process failed of.
    """
    if distributed.is_initialized():
        raise InvalidInput("this process is in a process group of torch's already: leave it first")
    gpus = _other_gpus(processes, device)
    sealed = seal({"object": (help, arguments)}).to_dict()
    threads = torch.get_num_threads()
    each = max(1, threads // processes)
    with tempfile.TemporaryDirectory(prefix="superduper-group-") as name:
        folder = Path(name)
        (folder / WORK).write_bytes(bson.encode(sealed))
        with _others(processes, device, folder, each, gpus) as others, _named_interface():
            others.wait_until_ready()
            torch.set_num_threads(each)
            try:
                yield joined(0, processes, device, folder)
                others.wait_for_end()
            except RuntimeError as error:  # as torch tells that another process is gone
                failure = others.failure()
                if failure is None:
                    raise
                raise failure from error
            finally:
                torch.set_num_threads(threads)
                others.end()
                if distributed.is_initialized():
                    distributed.destroy_process_group()


def _other_gpus(processes: int, device: torch.device) -> list[str] | None:
    """The GPUs that the other processes see, one each; None on CPUs."""
    if device.type != "cuda":
        return None
    count = torch.cuda.device_count()
    if processes > count:
        raise InvalidInput(f"processes={processes}, but there are {count} GPUs: one each is needed")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(number) for number in range(count)]
    del visible[device.index or 0]
    return visible


@contextlib.contextmanager
def _named_interface() -> Iterator[None]:
    """Have gloo talk over loopback: a machine's own name may stand for no address at all."""
    before = {name: os.environ.get(name) for name in _interface()}
    os.environ.update(_interface())
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _interface() -> dict[str, str]:
    return {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}


class _Others:
    """The processes that this one has started; they end when their standard input is closed."""

    def __init__(self, folder: Path, environments: list[dict[str, str]], kind: str) -> None:
        self.folder = folder
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        size = len(environments) + 1
        for rank, environment in enumerate(environments, 1):
            with (folder / f"{OUTPUT}{rank}").open("wb") as output:
                self.processes[rank] = subprocess.Popen(
                    [sys.executable, "-P", "-m", "superduper.training.group_member"]
                    + [str(folder), str(rank), str(size), kind],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                )

    def wait_until_ready(self) -> None:
        """Wait until all have what they need; raises what one of them failed of."""
        while len(list(self.folder.glob(f"{READY}*"))) < len(self.processes):
            failure = self._failure()
            if failure is not None:
                raise failure
            time.sleep(_TURN_SECONDS)

    def wait_for_end(self) -> None:
        """Wait until all have done their work; raises what one of them failed of."""
        for process in self.processes.values():
            process.wait()
        failure = self._failure()
        if failure is not None:
            raise failure

    def failure(self) -> SuperduperError | None:
        """What another process failed of, if one did; the first to say so is waited for."""
        deadline = time.monotonic() + _LOOK_SECONDS
        while time.monotonic() < deadline and self._failure() is None:
            time.sleep(_TURN_SECONDS)
        return self._failure()

    def _failure(self) -> SuperduperError | None:
        for rank, process in self.processes.items():
            told = self.folder / f"{FAILED}{rank}"
            if told.exists():
                what = json.loads(told.read_text(encoding="utf-8"))
                if what["code"]:
                    return error_of(what["code"], what["message"])
                return UserCodeError(f"process {rank} failed of {what['message']}")
            if process.poll():  # it has ended, and not well
                output = (self.folder / f"{OUTPUT}{rank}").read_text("utf-8", errors="replace")
                last = output[-_QUOTED_CHARACTERS:]
                return UserCodeError(f"process {rank} ended with {process.returncode}: {last}")
        return None

    def end(self) -> None:
        """End those that are still there."""
        for process in self.processes.values():
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


@contextlib.contextmanager
def _others(
    processes: int, device: torch.device, folder: Path, threads: int, gpus: list[str] | None
) -> Iterator[_Others]:
    common = {
        **_interface(),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    environments = [dict(common) for _ in range(processes - 1)]
    for environment, gpu in zip(environments, gpus or (), strict=False):
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    others = _Others(folder, environments, device.type)
    try:
        yield others
    finally:
        others.end()


def failed(folder: Path, rank: int, error: BaseException) -> None:
    """Leave for the leader what this process failed of."""
    code = error.code if isinstance(error, SuperduperError) else None
    text = str(error) if code else "".join(traceback.format_exception(error)).strip()
    told = folder / f"{FAILED}{rank}"
    unfinished = folder / f"unfinished-{rank}"
    unfinished.write_text(json.dumps({"code": code, "message": text}), encoding="utf-8")
    unfinished.rename(told)
