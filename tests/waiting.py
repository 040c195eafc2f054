"""Waiting for a condition, with a deadline: what tests do instead of sleeping for luck."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Who asks without pause takes the processor from those that are waited for: after a while they are
# asked less often, so that nothing is noticed later than by a twentieth.
LEAST_SECONDS, MOST_SECONDS, LATER = 0.02, 0.1, 1 / 20


def until(find: Callable[[], T], seconds: float = 60.0, what: str = "the condition") -> T:
    """What `find` returns soon after it is true; fails after the deadline."""
    began = time.monotonic()
    while not (found := find()):
        waited = time.monotonic() - began
        assert waited < seconds, f"gave up waiting for {what} after {seconds:g} s"
        time.sleep(min(max(LEAST_SECONDS, waited * LATER), MOST_SECONDS))
    return found
