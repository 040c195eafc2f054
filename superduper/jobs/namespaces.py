"""Namespaces of a process's own: no network, and processes that are counted for it alone."""

import fcntl
import os
import socket
import struct
from functools import cache
from pathlib import Path

from superduper.jobs.kernel import unshare

NEW_NETWORK = 0x40000000
NEW_USERS = 0x10000000
SET_FLAGS, UP = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP


def enter(*, network: bool) -> tuple[bool, bool]:
    """Whether this process is now cut off from the network, and whether its processes are counted.

    The administrator may cut off the network, and is not counted. Others need a namespace of
    users, which many systems permit and most containers do not; with one, the kernel counts what
    is started in it (since Linux 5.14).
    """
    if os.geteuid() == 0:
        return not network and unshare(NEW_NETWORK), False
    if not are_permitted():
        return False, False
    _enter_as_oneself(0 if network else NEW_NETWORK)
    return not network, True


def raise_loopback() -> None:
    """Let the processes of this network, which are this one's own, talk to each other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH22x", b"lo", UP))


@cache
def are_permitted() -> bool:
    """Whether the system gives a user namespaces: tried out in a process that ends at once.

    Half of one, without the user's own number in it, would be worse than none.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _enter_as_oneself(NEW_NETWORK)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _enter_as_oneself(more: int) -> None:
    user, group = os.geteuid(), os.getegid()
    if not unshare(NEW_USERS | more):
        raise PermissionError("the system permits no namespaces")
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{user} {user} 1")
    (own / "gid_map").write_text(f"{group} {group} 1")
