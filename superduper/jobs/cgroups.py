"""Control groups, in which the kernel counts the processes of the administrator's children.

It exempts the administrator from the limit that holds other users (RLIMIT_NPROC). Groups can be
made where their file system may be written to: on a machine of one's own, seldom in a container,
which has a limit from outside.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PREFIX = "superduper-child-"
ROOT = Path("/sys/fs/cgroup")


def enter(processes: int) -> bool:
    """Whether this process, and all it starts, is now in a group that allows so many."""
    for parent in _own_groups():
        group = parent / f"{PREFIX}{os.getpid()}"
        try:
            group.mkdir()
            (group / "pids.max").write_text(str(processes))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return True
        except OSError:  # read-only, or without this controller
            with contextlib.suppress(OSError):
                group.rmdir()
    return False


def remove(pid: int) -> None:
    """Remove the group of a child of this process that has ended, if it had one."""
    for parent in _own_groups():
        with contextlib.suppress(OSError):  # none, or something in it is still ending
            (parent / f"{PREFIX}{pid}").rmdir()


def remove_empty() -> None:
    """Remove the groups of children whose parents were killed; those in use stay."""
    for parent in _own_groups():
        for group in parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                group.rmdir()


def _own_groups() -> Iterator[Path]:
    """The groups of this process in which processes may be counted."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "pids":  # version 1 has a tree for each controller
            yield ROOT / "pids" / path.lstrip("/")
        elif controllers == "":
            yield ROOT / path.lstrip("/")
