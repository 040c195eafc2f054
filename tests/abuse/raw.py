"""Bytes that are not HTTP, or only nearly: the server answers 4xx or hangs up, and lives on."""

import contextlib
import random
import socket
from collections import Counter

REQUEST = (
    b"POST /v1/collections/docs/documents/count HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
)
NEARLY = (
    *(
        b"\x00" * 100,
        b"\r\n\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
    *(
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"get / http/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
    ),
    *(b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", b"GET //evil HTTP/1.1\r\nHost: x\r\n\r\n"),
    b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://127.0.0.1/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 100_000,
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 500,
)


def mangled(number: int) -> bytes:
    """One of as many malformed requests as there are numbers."""
    chance = random.Random(number)
    if number < len(NEARLY):
        return NEARLY[number]
    if number % 5 == 0:
        return chance.randbytes(chance.randrange(1, 2000))
    data = bytearray(REQUEST)
    for _ in range(chance.randrange(1, 8)):
        place = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                del data[place : place + chance.randrange(1, 10)]
            case 2:
                data[place:place] = chance.randbytes(chance.randrange(1, 10))
            case _:
                data[place:place] = data[place : place + chance.randrange(1, 40)]
        if not data:
            return b"\n"
    return bytes(data)


def send_mangled(
    port: int, numbers: range, seconds: float = 30.0
) -> tuple[Counter[str], list[str]]:
    """Send malformed requests, each on its own connection: what was said, and what must not be."""
    said: Counter[str] = Counter()
    problems = []
    for number in numbers:
        status = _status_of(_send(port, mangled(number), seconds))
        said[status] += 1
        if status[:1] not in ("2", "3", "4", "-"):  # - is: it hung up without a word
            problems.append(f"{number}: {status} to {mangled(number)[:80]!r}")
    return said, problems


def _send(port: int, data: bytes, seconds: float) -> bytes:
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while len(answer) < 1000 and (part := connection.recv(1000)):
            answer += part
    return answer


def _status_of(answer: bytes) -> str:
    if not answer:
        return "-"
    words = answer.split(None, 2)
    return words[1].decode("latin-1")[:3] if answer.startswith(b"HTTP/1.1 ") else "no HTTP"


def resident_mb(pid: int | str) -> float:
    """The memory that a process has."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory")
