"""Waiting for what other processes do."""

import time
from collections.abc import Callable

import psutil


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie waits only for its own parent."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until the condition holds; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)
