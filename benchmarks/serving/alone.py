"""What a lone request costs beside the forward: `python -m benchmarks.serving.alone`.

By turns, on one connection each: our server, and a bare loop in a process of its own that takes the
same bytes and sends the same bytes back. What both need (the client, the kernel, waking up) is in
both, so their difference is our server's own time. The forward is the model's, as the server counts
it in its own figures, over the same requests; what is left is what the server adds to it.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import Any

from benchmarks.serving.__main__ import agrees, ours
from benchmarks.serving.processes import HERE, Served

ECHO = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
answer = sys.stdin.buffer.read()
while connection.recv(1 << 16):
    connection.sendall(answer)
"""
ROUNDS, REQUESTS = 20, 250


def connect(url: str) -> socket.socket:
    """A connection to the host of a URL."""
    host, _, port = url.split("/")[2].partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request_of(served: Served) -> bytes:
    """The bytes of one request."""
    path = served.url.partition("/v1/")[2]
    headers = {**served.headers, "Host": "127.0.0.1", "Content-Length": str(len(served.body))}
    lines = [f"POST /v1/{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + served.body


def exchange(connection: socket.socket, request: bytes) -> tuple[float, bytes]:
    """Seconds until an answer is there, and the answer: its head, and an object in JSON."""
    began = time.perf_counter()
    connection.sendall(request)
    answer = connection.recv(1 << 16)
    while not answer.endswith(b"}"):  # by the ordinary way it comes in two pieces
        answer += connection.recv(1 << 16)
    return time.perf_counter() - began, answer


def forward_seconds(served: Served) -> tuple[float, float]:
    """What the server has counted of the model's forward up to now: seconds, and batches."""
    url = f"{served.url.partition('/v1/')[0]}/metrics"
    with urllib.request.urlopen(urllib.request.Request(url, headers=served.headers)) as told:
        text = told.read().decode()
    name = r'superduper_model_stage_seconds_{}{{[^}}]*stage="forward"[^}}]*}} (\S+)'
    found = [re.search(name.format(part), text) for part in ("sum", "count")]
    seconds, count = (float(each[1]) for each in found if each is not None)
    return seconds, count


def by_turns(request: bytes, asked: dict[str, socket.socket]) -> dict[str, list[float]]:
    """The median of each round, in milliseconds."""
    rounds: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(ROUNDS):
        for name, connection in asked.items():
            heard = [exchange(connection, request) for _ in range(REQUESTS)]
            assert all(said.startswith(b"HTTP/1.1 200") for _, said in heard)
            rounds[name].append(statistics.median(took for took, _ in heard) * 1000)
    return rounds


def measure() -> dict[str, Any]:
    """Medians of the rounds' medians, in milliseconds."""
    with ours("A") as served:
        assert agrees(served, "A", 1e-5)
        request, mine = request_of(served), connect(served.url)
        _, answer = exchange(mine, request)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", ECHO], stdin=pipe, stdout=pipe) as echo:
            assert echo.stdin is not None and echo.stdout is not None
            with mine, connect(f"http://127.0.0.1:{int(echo.stdout.readline())}/") as bare:
                echo.stdin.write(answer)
                echo.stdin.close()
                before = forward_seconds(served)
                rounds = by_turns(request, {"server": mine, "bare": bare})
                after = forward_seconds(served)
    server, floor = (statistics.median(rounds[name]) for name in ("server", "bare"))
    forward = (after[0] - before[0]) / (after[1] - before[1]) * 1000
    return {
        "server_ms": round(server, 3),
        "bare_socket_ms": round(floor, 3),
        "forward_ms": round(forward, 3),
        "over_the_forward_ms": round(server - floor - forward, 3),
        "over_the_forward_with_the_socket_ms": round(server - forward, 3),
        "rounds": rounds,
        "load": [round(each, 1) for each in os.getloadavg()],
    }


if __name__ == "__main__":
    result = measure()
    print({name: value for name, value in result.items() if name != "rounds"})
    if "--small" not in sys.argv:
        (HERE.parent / "results" / "serving_alone.json").write_text(
            json.dumps(result, indent=2) + "\n"
        )
