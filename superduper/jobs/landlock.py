"""What a process may no longer reach, by the Linux security module Landlock; needs no privilege.

The numbers are those of linux/landlock.h; `man 7 landlock` tells what they mean.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from superduper.jobs.kernel import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION = 1
PATH_BENEATH = 1

WRITE_FILE = 1 << 1
REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
REFER = 1 << 13  # since version 2: move a file to another folder
TRUNCATE = 1 << 14  # since version 3
TCP = 0b11  # bind and connect, since version 4
SCOPES = 0b11  # abstract sockets and signals, since version 6
SCOPES_SINCE, TCP_SINCE = 6, 4


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scopes")]


@dataclass(frozen=True)
class Held:
    """What Landlock keeps the process from; all False where the kernel has none."""

    files: bool = False
    tcp: bool = False
    others: bool = False


def version() -> int:
    """The version of Landlock that the kernel has, 0 for none."""
    try:
        return syscall(CREATE_RULESET, None, 0, ASK_VERSION)
    except OSError:
        return 0


def restrict(writable: Iterable[str], *, network: bool) -> Held:
    """Let this process change files only in and below some folders, for good.

    It can no longer signal, trace or read the memory and environment of processes that it did not
    start, nor, without `network`, use TCP. Needs `no_new_privs`. Folders that do not exist are
    left out.
    """
    known = version()
    if known == 0:
        return Held()
    changes = WRITE_FILE | REMOVE_AND_MAKE
    changes |= (REFER if known >= 2 else 0) | (TRUNCATE if known >= 3 else 0)
    wanted = _Ruleset(
        files=changes,
        network=TCP if known >= TCP_SINCE and not network else 0,
        scopes=SCOPES if known >= SCOPES_SINCE else 0,
    )
    size = ctypes.sizeof(wanted)
    ruleset = syscall(CREATE_RULESET, ctypes.byref(wanted), size, 0)
    try:
        # Devices are written to (the null device, GPUs), and none is made. Threads are given
        # names in /proc, without which CUDA does not start.
        written = WRITE_FILE | (changes & TRUNCATE)
        allowed = {"/dev": written, "/proc/self/task": written, "/dev/shm": changes}
        _allow(ruleset, {**allowed, **dict.fromkeys(writable, changes)})
        syscall(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return Held(files=True, tcp=bool(wanted.network), others=bool(wanted.scopes))


def _allow(ruleset: int, access: Mapping[str, int]) -> None:
    for folder, changes in access.items():
        try:
            opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            rule = struct.pack("=Qi", changes, opened)
            syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.c_char_p(rule), 0)
        finally:
            os.close(opened)
