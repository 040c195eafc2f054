"""What a process that runs user code may use and reach; it confines itself before it loads any."""

import fcntl
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from superduper import settings
from superduper.jobs import landlock, namespaces, seccomp
from superduper.jobs.kernel import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    drop_capabilities,
    prctl,
)

MIB = 1 << 20
F_SETSIG = 10
OOM_SCORE = 800

#: What the system holds a child by where it can; beyond it there is what the parent does.
BOUNDARIES = {
    "network": "no network",
    "tcp": "no TCP",
    "files": "files changed in its own folders only",
    "others": "no signals to others, no sight of their memory",
    "calls": "no system calls to spy, mount or leave its group",
    "processes": "processes limited by the kernel",
}


@dataclass(frozen=True)
class Limits:
    """Limits of one child process.

    Memory is counted as private writable memory (RLIMIT_DATA): CUDA and torch reserve far more
    address space than they use, so that a limit on it would stop them at once. Of `processes`
    the kernel lets a child start no more where it counts them (threads as well); elsewhere the
    parent counts a few times a second, and ends a child that has more. `writable` are the
    folders beside its own in which it may change files. `loopback` lets its processes talk to
    each other by TCP: in a network of their own, or where the system gives none in the common one.
    """

    memory_mb: int = 8192
    cpu_seconds: int | None = None
    file_mb: int = 4096
    open_files: int = 1024
    processes: int = 512
    network: bool = False
    loopback: bool = False
    writable: tuple[str, ...] = ()

    @classmethod
    def of_settings(cls, **more: Any) -> Self:
        """The limits that the settings ask for, and more."""
        folders = tuple(filter(None, settings.get("CHILD_FOLDERS").split(os.pathsep)))
        return cls(memory_mb=int(settings.get_number("CHILD_MEMORY_MB")), writable=folders, **more)


def confine(limits: Limits, lifeline: int) -> dict[str, bool]:
    """Apply the limits to this process; return which of BOUNDARIES hold it.

    Each holds where the system has it and permits it; without, the process goes on.
    """
    os.umask(0o077)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, limits.memory_mb * MIB)
    _limit(resource.RLIMIT_FSIZE, limits.file_mb * MIB)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.cpu_seconds is not None:
        _limit(resource.RLIMIT_CPU, limits.cpu_seconds, spare=1)
    if sys.platform != "linux":
        return dict.fromkeys(BOUNDARIES, False)
    prctl(PR_SET_DUMPABLE, 1)  # the fork server's is 0, and its parent must find what is started
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # so that all it starts stays below it and can be counted
    _die_with_parent(lifeline)
    # If the machine runs out of memory, this process goes, not the database or the worker.
    Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    cut_off, counted = namespaces.enter(network=limits.network)
    if cut_off and limits.loopback:
        namespaces.raise_loopback()
    if counted:
        _limit(resource.RLIMIT_NPROC, limits.processes)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    drop_capabilities()  # a privileged user could raise the limits again
    talks = limits.network or limits.loopback
    held = landlock.restrict((os.getcwd(), *limits.writable), network=talks)
    calls = seccomp.refuse_calls(sockets=talks)
    cut_off = cut_off or (calls and not talks)
    return {
        "network": cut_off,
        "tcp": cut_off or held.tcp,
        "files": held.files,
        "others": held.others,
        "calls": calls,
        "processes": counted,
    }


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
