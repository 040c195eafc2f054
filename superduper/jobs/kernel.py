"""Calls of the Linux kernel that Python has no function for."""

import ctypes
import os
import platform
import sys
from functools import cache
from typing import Any

PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

MACHINE = platform.machine()
_CAPABILITY_VERSION = 0x20080522


@cache
def libc() -> Any:
    """The C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *values: Any) -> None:
    """Change something of this process. Raises OSError if the kernel refuses."""
    arguments = [*values, *[0] * (4 - len(values))]
    checked(libc().prctl(option, *map(_long, arguments)), f"prctl({option})")


def syscall(number: int, *values: Any) -> int:
    """The answer of a system call. Raises OSError if the kernel refuses."""
    found = libc().syscall(ctypes.c_long(number), *map(_long, values))
    return checked(found, f"system call {number}")


def unshare(flags: int) -> bool:
    """Whether the kernel gave this process namespaces of its own."""
    return bool(libc().unshare(flags) == 0)


def drop_capabilities() -> None:
    """Give up every privilege for good: what this process starts has none either.

    No privilege comes back by running a program, since confined processes have `no_new_privs`.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    checked(libc().capset(ctypes.byref(header), ctypes.byref(nothing)), "capset")


def conceal() -> None:
    """Let no process of the same user read this one's memory or environment, or trace it.

    For processes with secrets, and those that children are forked from. Elsewhere than on Linux
    nothing is done.
    """
    if sys.platform == "linux":
        prctl(PR_SET_DUMPABLE, 0)


def checked(answer: int, what: str) -> int:
    """The answer, if it is not an error."""
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return answer


def _long(value: Any) -> Any:
    return ctypes.c_long(value) if isinstance(value, int) else value
