"""A real HTTP server that records what it is asked and answers what the test says."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import bson

from superduper import commands
from superduper.command import build

BSON = "application/bson"
JSON = "application/json"
STATUS = build(commands.ShowStatus)
INSERT = build(commands.InsertDocuments, collection="docs", documents=[{"_id": 1}])
PREDICT = build(commands.Predict, collection="docs", name="m", inputs=[1])


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    connection: object

    @property
    def document(self) -> dict[str, Any]:
        return bson.decode(self.body)


@dataclass
class Reply:
    """One answer; `cut` ends the connection after that many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": BSON})
    cut: int | None = None
    before: Callable[[], Any] | None = None


def result(value: Any, status: int = 200) -> Reply:
    return Reply(status, bson.encode({"result": value}))


def refusal(status: int, code: str, message: str = "no", **headers: str) -> Reply:
    error = {"code": code, "message": message, "request_id": "r-1"}
    return Reply(status, bson.encode({"error": error}), {"Content-Type": BSON, **headers})


class Answers:
    """What the server was asked, and what it answers: each reply once, the last for ever."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.replies: list[Reply | Callable[[Asked], Reply]] = [result(None)]
        self.url = ""

    def take(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply(asked) if callable(reply) else reply


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: Answers

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        asked = Asked(self.command, parts.path, query, headers, body, self)
        reply = self.answers.take(asked)
        if reply.before is not None:
            reply.before()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: reply.cut])
        self.close_connection = reply.cut is not None

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def serving(answers: Answers, port: int = 0) -> Iterator[None]:
    """Answers from a real server on a port of the loopback interface."""
    handler = type("Handler", (_Handler,), {"answers": answers})
    with _Server(("127.0.0.1", port), handler) as server:
        answers.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join(10)


def unused_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
