"""The processes that a process has started, and those that these have started."""

from contextlib import suppress
from pathlib import Path


def count_descendants(pid: int, most: int) -> int:
    """How many processes are below this one; beyond `most` counting ends.

    A child of ours is where the orphans below it go, so that none is missed. Answers 0 where the
    kernel does not list children.
    """
    found, waiting = 0, [pid]
    while waiting and found <= most:
        children = _children_of(waiting.pop())
        found += len(children)
        waiting += children
    return found


def _children_of(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found
