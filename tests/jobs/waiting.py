"""Waiting for what other processes do."""

import psutil

from superduper.jobs.child import Child


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie waits only for its own parent."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def still_answers(child: Child) -> bool:
    """Whether it answers a request."""
    return child.request({"op": "echo", "value": 1}, timeout=20) == {"value": 1}
