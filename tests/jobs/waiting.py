"""Waiting for what other processes do."""

import psutil


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie waits only for its own parent."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
