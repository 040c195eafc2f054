"""Requests as bytes on a connection of their own."""

import socket

from superduper_server.serve import Server


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request_to(path: str, body: bytes, *more: str) -> bytes:
    head = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more)
    text = "\r\n".join((*head, f"Content-Length: {len(body)}", "", ""))
    return text.encode() + body


def receive_answer(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(65536)
    return received
