"""The servers that can be an embedded store: which are here, and how each is started.

All speak MongoDB's protocol and are separate processes, reached over loopback. SecantusDB is
GPL-2.0: it is looked for without being imported, and only ever run.
"""

import importlib.util
import os
import shutil
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bson

from superduper import settings
from superduper.errors import InvalidInput, MissingExtra

LOOPBACK = "127.0.0.1"
MONGOD = "mongod"
SECANTUS_RUST = "secantus-rust"
SECANTUS = "secantus"
SERVERS = (MONGOD, SECANTUS_RUST, SECANTUS)  # the best first
REPLICA_SET = "superduper"

# Each commit goes to the operating system: a killed server loses nothing that it acknowledged.
# SecantusDB's own default loses the last milliseconds.
DURABLE = "transaction_sync=(enabled=true,method=none)"
# How far back a change stream can resume; in changes by the setting OPLOG_ENTRIES.
OPLOG_SECONDS = 86_400

INTERNAL_ERROR = 1
ALREADY_INITIALIZED = 23
OP_MSG = 2013

Health = Literal["well", "broken", "silent"]


@dataclass(frozen=True)
class Server:
    """One server that is installed here."""

    name: str
    program: tuple[str, ...]

    def command(self, data: Path, port: int) -> list[str]:
        """The command line that serves the folder on a loopback port."""
        if self.name == MONGOD:
            options = ["--dbpath", str(data), "--bind_ip", LOOPBACK, "--port", str(port)]
            options += ["--replSet", REPLICA_SET, "--nounixsocket", "--wiredTigerCacheSizeGB", "1"]
            return [*self.program, *options]
        # Without a file of its own it would obey a secantusd.toml in the user's folders.
        config = data / "secantusd.toml"
        config.touch()
        options = ["--config", str(config), "--storage-path", str(data), "--log-level", "WARNING"]
        options += ["--host", LOOPBACK, "--port", str(port)]
        options += ["--oplog-retention-seconds", str(OPLOG_SECONDS)]
        options += ["--oplog-max-entries", str(int(settings.get_number("OPLOG_ENTRIES")))]
        return [*self.program, *options]

    def environment(self) -> dict[str, str]:
        """The variables it is started with: ours, and none that would change its ways."""
        ours = {key: text for key, text in os.environ.items() if not key.startswith("SECANTUS_")}
        return {**ours, "WIREDTIGER_CONFIG": DURABLE} if self.name != MONGOD else ours

    def is_ready(self, port: int) -> bool:
        """Whether it takes writes; makes a mongod the only member of its replica set."""
        try:
            hello = ask(port, {"hello": 1})
            if hello.get("isWritablePrimary"):
                return True
            if self.name == MONGOD:
                _join_replica_set(port)
        except OSError:
            pass  # not listening yet
        return False

    def health(self, port: int) -> Health:
        """Whether it works, can do nothing any more (SecantusDB after its disk was full), or is
        silent: then it is busy, or hangs.

        A mongod that can do nothing ends by itself.
        """
        try:
            reply = ask(port, {"find": "health", "limit": 1, "singleBatch": True})
        except OSError:
            return "silent"
        broken = self.name != MONGOD and reply.get("code") == INTERNAL_ERROR
        return "broken" if broken else "well"


def _join_replica_set(port: int) -> None:
    """Initiate the replica set of one; after a move to another port, correct its member's."""
    members = [{"_id": 0, "host": f"{LOOPBACK}:{port}"}]
    reply = ask(port, {"replSetInitiate": {"_id": REPLICA_SET, "members": members}})
    if reply.get("code") != ALREADY_INITIALIZED:
        return
    config = ask(port, {"replSetGetConfig": 1}).get("config")
    if config and config["members"][0]["host"] != members[0]["host"]:
        config["members"][0]["host"] = members[0]["host"]
        config["version"] += 1
        ask(port, {"replSetReconfig": config, "force": True})


def ask(port: int, command: dict[str, Any], timeout_seconds: float = 2.0) -> dict[str, Any]:
    """A server's reply to one admin command, without the weight of a driver.

    Raises OSError if it does not answer in time.
    """
    deadline = time.monotonic() + timeout_seconds
    body = b"\0\0\0\0\0" + bson.encode({**command, "$db": "admin"})
    with socket.create_connection((LOOPBACK, port), timeout_seconds) as connection:
        connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, OP_MSG) + body)
        (length,) = struct.unpack("<i", _receive(connection, 4, deadline))
        reply = _receive(connection, length - 4, deadline)
    return bson.decode(reply[17:])  # after the rest of the header, the flags and the section's kind


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    received = b""
    while len(received) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionError("the server closed the connection")
        received += part
    return received


def answers(port: int) -> bool:
    """Whether a server answers a ping."""
    try:
        return ask(port, {"ping": 1}).get("ok") == 1
    except OSError:
        return False


def _program(name: str) -> tuple[str, ...] | None:
    """How that server is run, None if it is not installed."""
    if name == MONGOD:
        found = shutil.which("mongod")
    elif name == SECANTUS_RUST:
        found = _find_rust()
    else:
        # -P: a file of the user's folder must not shadow a module.
        here = importlib.util.find_spec("secantus") is not None
        return (sys.executable, "-P", "-m", "secantus") if here else None
    return (found,) if found else None


def _find_rust() -> str | None:
    """SecantusDB's Rust server: on the PATH, beside this python, or inside its wheel."""
    places = [None, str(Path(sys.executable).parent)]
    wheel = importlib.util.find_spec("secantusdb")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        places += [folder, str(Path(folder) / "bin")]
    for place in places:
        for program in ("secantusd-mdb", "secantusd-rs"):
            found = shutil.which(program, path=place)
            if found:
                return found
    return None


def find_server(choice: str = "auto") -> Server:
    """The server of that name, or for "auto" the one that SUPERDUPER_STORE names, or the best.

    Raises InvalidInput for an unknown name, MissingExtra if there is none.
    """
    if choice == "auto":
        choice = settings.get("STORE")
    if choice not in ("auto", *SERVERS):
        raise InvalidInput(f"no embedded store {choice!r}: choose auto, {', '.join(SERVERS)}")
    for name in SERVERS if choice == "auto" else (choice,):
        program = _program(name)
        if program:
            return Server(name, program)
    if choice == MONGOD:
        raise InvalidInput("SUPERDUPER_STORE=mongod, but there is no mongod on the PATH")
    raise MissingExtra.of("embedded", "the embedded store")


def describe_servers() -> list[dict[str, Any]]:
    """Every server with where it is (None: not installed) and whether it would be used."""
    found = {name: _program(name) for name in SERVERS}
    choice = settings.get("STORE")
    best = next((name for name in SERVERS if found[name]), None) if choice == "auto" else choice
    return [
        {
            "server": name,
            "program": " ".join(program) if program else None,
            "used": name == best and program is not None,
        }
        for name, program in found.items()
    ]
