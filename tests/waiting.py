"""Waiting for a condition, with a deadline: what tests do instead of sleeping for luck."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(find: Callable[[], T], seconds: float = 60.0, what: str = "the condition") -> T:
    """What `find` returns as soon as it is true; fails after the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, f"gave up waiting for {what} after {seconds:g} s"
        time.sleep(0.02)
    return found
