"""What a process that runs user code may use: limits it sets on itself before loading that code."""

import ctypes
import fcntl
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38
F_SETSIG = 10
OOM_SCORE = 800


@dataclass(frozen=True)
class Limits:
    """Limits of one child process.

    Memory is counted as private writable memory (RLIMIT_DATA): CUDA and torch reserve far more
    address space than they use, so that a limit on it would stop them at once. The number of
    processes is not limited: the system counts it per user, our own processes included; what a
    child leaves running is killed with it instead.
    """

    memory_mb: int = 8192
    cpu_seconds: int | None = None
    file_mb: int = 4096
    open_files: int = 1024
    network: bool = False


def confine(limits: Limits, lifeline: int) -> bool:
    """Apply the limits to this process; return whether it is cut off from the network.

    Cutting off takes a privilege (CAP_SYS_ADMIN); without it the process goes on with the network.
    """
    os.umask(0o077)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, limits.memory_mb * MIB)
    _limit(resource.RLIMIT_FSIZE, limits.file_mb * MIB)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.cpu_seconds is not None:
        _limit(resource.RLIMIT_CPU, limits.cpu_seconds, spare=1)
    if sys.platform != "linux":
        return False
    _die_with_parent(lifeline)
    # If the machine runs out of memory, this process goes, not the database or the worker.
    Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    libc = ctypes.CDLL(None, use_errno=True)
    isolated = not limits.network and libc.unshare(CLONE_NEWNET) == 0
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")
    return isolated


def _limit(kind: int, value: int, spare: int = 0) -> None:
    ceiling = resource.getrlimit(kind)[1]
    soft, hard = (
        wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
        for wanted in (value, value + spare)
    )
    resource.setrlimit(kind, (soft, hard))


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this whole process group when the parent is gone.

    Nobody writes to the pipe; its other end closes with the parent, and that raises the signal,
    even while this process is busy in C code. PR_SET_PDEATHSIG would reach this process alone, and
    often so early that the signal for the group is lost with it; also, it is sent when the thread
    that started this process ends, which may be a pool's.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
