"""Entries of the child processes that the tests in this folder start."""

import ctypes
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import Any

from superduper.errors import ArtifactRejected, LostLease
from superduper.jobs.channel import Channel, serve

Message = dict[str, Any]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def echo(message: Message) -> Message:
    return {"value": message.get("value")}


def facts(_: Message) -> Message:
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "main": [name for name in vars(sys.modules["__main__"]) if not name.startswith("__")],
        "pid": os.getpid(),
        "modules": sorted(sys.modules),
    }


def raise_one(message: Message) -> Message:
    kinds: dict[str, BaseException] = {
        "value": ValueError("bad row \ud800"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "memory": MemoryError(),
        "unprintable": Unprintable(),
        "rejected": ArtifactRejected("signature does not match"),
        "lease": LostLease("forged"),
        "refused": ConnectionRefusedError("nobody there"),
    }
    print("about to raise")
    raise kinds[message["kind"]]


def recurse(message: Message) -> Message:
    return recurse(message)


def channel_number() -> int:
    """The file number of the channel's socket, the only one that is open."""
    [number] = [fd for fd in range(3, 64) if _is_socket(fd)]
    return number


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def die(message: Message) -> Message:
    print("these are my", "last words", sep="\n")
    match message["how"]:
        case "exit":
            os._exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "close":
            os.closerange(3, 1000)
            time.sleep(60)
        case "garbage":
            os.write(channel_number(), b"\x10\x00\x00\x00" + b"\xff" * 16)
            time.sleep(60)
        case "huge":
            os.write(channel_number(), b"\xff\xff\xff\x7f")
            time.sleep(60)
    return {}


def allocate(message: Message) -> Message:
    return {"size": len(bytearray(message["mb"] << 20))}


def hoard(_: Message) -> Message:
    kept = []
    while True:
        kept.append([object() for _ in range(100_000)])


def chatter(message: Message) -> Message:
    for _ in range(message["mb"]):
        sys.stdout.write("x" * 1023 + "\n")
        sys.stdout.write(("y" * 1023 + "\n") * 1023)
    return {"done": True}


def hang(message: Message) -> Message:
    if message.get("in_c"):
        re.match(r"(a|aa)+$", "a" * 60 + "b")
    time.sleep(600)
    return {}


def spawn(message: Message) -> Message:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    pids = [subprocess.Popen(command).pid for _ in range(2)]
    if message.get("exit"):
        os._exit(9)
    return {"pids": pids}


def fork_and_exit(_: Message) -> Message:
    if os.fork() == 0:  # keeps the channel's socket and the output open
        time.sleep(600)
    os._exit(9)


def connect(_: Message) -> Message:
    with socket.socket() as connection:
        return {"errno": connection.connect_ex(("127.0.0.1", 1))}


def write_file(message: Message) -> Message:
    with open("large", "wb") as file:
        file.truncate(message["mb"] << 20)
    os.mkdir("locked")
    os.chmod("locked", 0)
    return {}


def torch_sum(_: Message) -> Message:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    model(torch.ones(32, 64)).sum().backward()
    return {"sum": float(torch.ones(1000, 1000).sum()), "threads": torch.get_num_threads()}


def draw(_: Message) -> Message:
    import numpy

    return {"random": random.random(), "numpy": float(numpy.random.random())}


def unsendable(_: Message) -> Message:
    return {"value": {1, 2}}


def main(channel: Channel) -> None:
    def events(message: Message) -> Message:
        for step in range(message["n"]):
            channel.send({"event": {"step": step}})
        return {}

    operations = (
        (echo, facts, raise_one, recurse, die, allocate, hoard, chatter, hang, spawn)
        + (fork_and_exit, connect, write_file, torch_sum, draw, unsendable, events)
    )  # fmt: skip
    serve(channel, {operation.__name__: operation for operation in operations})


def broken(channel: Channel) -> None:
    raise RuntimeError("this entry cannot start")
