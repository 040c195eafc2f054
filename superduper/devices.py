"""What models compute on: a GPU if there is one. Needs torch.

Imported where models run or are trained, and nowhere else.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable

import torch

from superduper.errors import InvalidInput

GPU_LOST = 70
"""The exit code of a process whose GPU answers no more."""
_MIB = 1 << 20


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name, or of "auto", which is a GPU if there is one.

    Raises InvalidInput if this machine has none of that name.
    """
    try:
        device = default_device() if name == "auto" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidInput(f"there is no device {str(name)!r} here: {error!s:.200}") from error
    return device


def child_device(name: str) -> torch.device:
    """The device of a child process, which computes the same again from the same.

    A GPU's matrix products are repeatable only with a workspace of fixed size, which has to be
    asked for before the first of them (cuBLAS, "Results reproducibility").
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device_of(name)


def train_repeatably(device: torch.device) -> None:
    """Have torch take the repeatable one of several algorithms, and warn where it knows none."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_name(device: torch.device) -> str:
    """A device's name, as a run records it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_mb(device: torch.device) -> int:
    """MiB of a GPU's memory that this process holds for tensors; 0 for main memory."""
    return torch.cuda.memory_reserved(device) // _MIB if device.type == "cuda" else 0


def stopwatch(device: str | torch.device) -> Callable[[], float]:
    """Tells seconds, to measure what is computed on a device.

    Of this thread's processor time, so that other programs do not count. A GPU's work goes on by
    itself: there by the clock, once all that was begun is done.
    """
    if torch.device(device).type != "cuda":
        return time.thread_time

    def done() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return done


def end_if_lost(device: torch.device) -> None:
    """End this process if its GPU is lost to it.

    After a failed assertion in a kernel, for an index that is not in a table say, every later call
    fails, for whatever input, until the process ends. Whoever waits for an answer takes that for
    what it is: a batch that ended its process.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        traceback.print_exc()
        print(f"{device} is lost to this process, which ends", file=sys.stderr, flush=True)
        os._exit(GPU_LOST)
