"""What user code in a child may try: each answers with what the system said to it."""

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from superduper.jobs.channel import Channel, serve

Message = dict[str, Any]
BOMB_SECONDS = 15.0  # after which it ends by itself, should nothing else end it

tempfile.gettempdir()  # noted when this is loaded, as by some of torch's modules


def told(act: Callable[[], Any]) -> Message:
    """The name of the error that the system answered with, None if it did as asked."""
    try:
        act()
    except OSError as error:
        return {"refused": errno.errorcode.get(error.errno or 0, "unknown")}
    return {"refused": None}


def write(message: Message) -> Message:
    return told(lambda: Path(message["path"]).write_text("x"))


def remove(message: Message) -> Message:
    return told(lambda: os.remove(message["path"]))


def move(message: Message) -> Message:
    Path("loot").write_text("x")
    return told(lambda: os.rename("loot", message["path"]))


def read(message: Message) -> Message:
    return told(lambda: Path(message["path"]).read_bytes())


def talk(_: Message) -> Message:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=10) as one,
        server.accept()[0] as other,
    ):
        one.sendall(b"a word")
        return {"heard": other.recv(6).decode()}


def kill(message: Message) -> Message:
    return told(lambda: os.kill(message["pid"], message["signal"]))


def connect(message: Message) -> Message:
    def open_one() -> None:
        kind = socket.SOCK_DGRAM if message.get("udp") else socket.SOCK_STREAM
        with socket.socket(type=kind) as connection:
            connection.connect(("127.0.0.1", message["port"]))

    return told(open_one)


def make_socket(message: Message) -> Message:
    kind = socket.SOCK_SEQPACKET if message["family"] == socket.AF_ALG else socket.SOCK_DGRAM
    return told(lambda: socket.socket(message["family"], kind).close())


def call(message: Message) -> Message:
    """A system call by its number, with arguments that would be refused otherwise than by us."""
    libc = ctypes.CDLL(None, use_errno=True)

    def act() -> None:
        if libc.syscall(*map(ctypes.c_long, (message["number"], -1, -1, -1, -1, -1))) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return told(act)


def new_users(_: Message) -> Message:
    """A process in a namespace of users of its own, by clone."""
    libc = ctypes.CDLL(None, use_errno=True)

    def act() -> None:
        pid = libc.syscall(ctypes.c_long(56), ctypes.c_long(0x10000000 | 17), None, None, None, 0)
        if pid == 0:
            os._exit(0)
        if pid < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return told(act)


def raise_limit(_: Message) -> Message:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, unlimited)
    except ValueError:  # what Python makes of EPERM
        return {"refused": "EPERM"}
    return {"refused": None}


def limit_another(message: Message) -> Message:
    """Give another process so little time that it is ended."""
    return told(lambda: resource.prlimit(message["pid"], resource.RLIMIT_CPU, (1, 1)))


def alter(message: Message) -> Message:
    """Change everything about a file but what is in it; the errors by what was tried."""
    path = message["path"]
    acts: dict[str, Callable[[], Any]] = {
        "mode": lambda: os.chmod(path, 0),
        "owner": lambda: os.chown(path, os.getuid(), os.getgid()),
        "attributes": lambda: os.setxattr(path, "user.mark", b"x"),
    }
    return {name: told(act)["refused"] for name, act in acts.items()}


def touch(_: Message) -> Message:
    """Make a file without anything in it."""
    Path("touched").touch()
    return {"made": Path("touched").is_file()}


def copy(_: Message) -> Message:
    """Copy a file of its own with all that belongs to it."""
    Path("original").write_text("x")
    return told(lambda: shutil.copy2("original", "copy"))


def privileges(_: Message) -> Message:
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: status[name] for name in ("CapEff", "CapPrm", "NoNewPrivs", "Seccomp")}


def folder(_: Message) -> Message:
    return {"folder": os.getcwd()}


def temporary(_: Message) -> Message:
    return {"folder": tempfile.mkdtemp()}


def bomb(_: Message) -> Message:
    """Start processes that start processes, without end, and try to get away."""
    end = time.monotonic() + BOMB_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                os.setsid()
    os._exit(0)


def multiply(message: Message) -> Message:
    """Start some processes that only wait."""
    for _ in range(message["n"]):
        if os.fork() == 0:
            time.sleep(BOMB_SECONDS)
            os._exit(0)
    time.sleep(message["seconds"])
    return {"started": message["n"]}


def main(channel: Channel) -> None:
    operations = (
        (write, remove, move, read, kill, connect, talk, make_socket, call, new_users)
        + (raise_limit, limit_another, alter, copy, touch, privileges, folder, temporary)
        + (bomb, multiply)
    )  # fmt: skip
    serve(channel, {operation.__name__: operation for operation in operations})
