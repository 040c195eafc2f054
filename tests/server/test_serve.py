"""The server as a process: ready line, tokens, limits on the wire, a graceful end."""

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pymongo.database import Database

from superduper.command import PLURALS
from superduper.errors import InvalidInput
from superduper_server.serve import check_bind, is_loopback, make_server
from superduper_server.tokens import Tokens
from tests.server.certificates import make_certificate
from tests.server.running import Running, run, running, serving
from tests.waiting import until


@pytest.fixture
def arguments(store_uri: str, database: Database[Any]) -> tuple[str, ...]:
    """How a fresh database is served."""
    return ("serve", "--uri", store_uri, "--database", database.name, "--port", "0", "--json")


@pytest.fixture
def server(arguments: tuple[str, ...], tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "log", *arguments, SUPERDUPER_BODY_LIMIT_MB="1") as found:
        yield found


def test_the_ready_line_is_true(server: Running, database: Database[Any]) -> None:
    assert server.ready.keys() == {"url", "token"}
    with server.http() as http:
        assert http.get("/readyz").status_code == 200
        assert http.get("/v1/status").json()["database"] == database.name
        assert "server" not in http.get("/healthz").headers
    with httpx2.Client() as stranger:
        assert stranger.get(server.ready["url"] + "/v1/status").status_code == 401


def test_the_token_is_told_once(
    server: Running, arguments: tuple[str, ...], tmp_path: Path, database: Database[Any]
) -> None:
    assert server.ready["token"].startswith("sd_")
    assert server.ready["token"] not in server.log()
    with running(tmp_path / "second", *arguments) as second:
        assert second.ready["token"] is None
    for row in Tokens(database).list():
        Tokens(database).revoke(row["id"])
    with running(tmp_path / "third", *arguments) as third:
        assert third.ready["token"]


def test_without_tokens_on_loopback(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with running(tmp_path / "log", *arguments, "--insecure") as server:
        assert server.ready["token"] is None
        with server.http() as http:
            assert http.get("/v1/status").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_when_told_and_idle(server: Running, number: signal.Signals) -> None:
    with server.http() as http:
        http.get("/healthz")  # an idle connection must not hold it up
        began = time.monotonic()
        assert server.end(number) == 0
        assert time.monotonic() - began < 10
    assert "Traceback" not in server.log()


def test_what_was_begun_is_finished(server: Running, database: Database[Any]) -> None:
    answers: list[int] = []
    with server.http() as http:
        body = json.dumps({"documents": [{"a": 1}]}).encode()
        went = threading.Event()

        def slowly() -> Iterator[bytes]:
            yield body[:10]
            went.set()
            until(lambda: is_closed(server.ready["url"]), what="the port to close")
            yield body[10:]

        def post() -> None:
            path = "/v1/collections/docs/documents"
            headers = {"Content-Type": "application/json"}
            answers.append(http.post(path, content=slowly(), headers=headers).status_code)

        thread = threading.Thread(target=post)
        thread.start()
        assert went.wait(10)
        assert server.end() == 0
        thread.join(10)
    assert answers == [201]
    assert database["docs"].count_documents({}) == 1


def is_closed(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_endless_body_is_cut_off(server: Running) -> None:
    host, port = server.ready["url"].removeprefix("http://").split(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = (
            "POST /v1/collections/docs/documents HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {server.ready['token']}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        try:
            while sent < 100_000_000:
                connection.sendall(chunk)
                sent += 65536
        except OSError:
            pass
        else:
            pytest.fail("100 MB were taken")
    with server.http() as http:
        assert http.get("/healthz").status_code == 200
        text = http.get("/metrics").text
    assert 'route="/v1/collections/{collection}/documents",status="413"' in text


def test_a_stranger_who_sends_for_ever_is_cut_off_too(server: Running) -> None:
    host, port = server.ready["url"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = "POST /v1/tokens HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        with pytest.raises(OSError):
            for _ in range(2000):
                connection.sendall(chunk)


def test_raw_nonsense_is_a_400(server: Running) -> None:
    host, port = server.ready["url"].removeprefix("http://").split(":")
    for nonsense in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        assert not answer or answer.split()[1][:1] in (b"3", b"4"), (nonsense, answer)
    with server.http() as http:
        assert http.get("/healthz").status_code == 200


def test_a_port_that_is_taken(server: Running, arguments: tuple[str, ...]) -> None:
    port = server.ready["url"].rpartition(":")[2]
    taken = [port if text == "0" else text for text in arguments]
    ended = run(*taken)
    assert ended.returncode == 1
    assert f"port {port}" in ended.stderr
    assert "--port" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_public_address_is_asked_for_by_name(host: str) -> None:
    with pytest.raises(InvalidInput, match="insecure-bind"):
        check_bind(host, insecure=False, insecure_bind=False)
    with pytest.raises(InvalidInput, match="loopback only"):
        check_bind(host, insecure=True, insecure_bind=True)
    check_bind(host, insecure=False, insecure_bind=True)
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_loopback(host: str) -> None:
    check_bind(host, insecure=True, insecure_bind=False)


def test_https(database: Database[Any], tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=tls[0])
    with (
        serving(make_server(database, insecure=True, tls=tls)) as server,
        httpx2.Client(base_url=server.url, verify=trusted) as http,
    ):
        assert server.url.startswith("https://")
        assert http.get("/v1/status").json()["database"] == database.name
        plain = server.url.replace("https", "http")
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(plain + "/healthz")


def test_a_certificate_opens_public_addresses(database: Database[Any], tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with pytest.raises(InvalidInput, match="cannot listen"):  # asked for, and not ours
        make_server(database, host="192.0.2.1", tls=(certificate, key))
    with pytest.raises(InvalidInput, match="not a certificate and its key"):
        make_server(database, tls=(certificate, certificate))


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    certificate, _ = make_certificate(tmp_path)
    ended = run("serve", "--tls-certificate", certificate, SUPERDUPER_URI="embedded:/nowhere")
    assert ended.returncode == 1
    assert "pass both" in ended.stderr


@pytest.mark.parametrize(
    ("host", "setting", "told", "taken"),
    [
        ("127.0.0.1", "", None, True),
        ("127.0.0.1", "no", None, False),
        ("127.0.0.1", "no", True, True),
        ("0.0.0.0", "", None, False),
        ("0.0.0.0", "auto", None, False),
        ("0.0.0.0", "yes", None, True),
        ("0.0.0.0", "yes", False, False),
    ],
)
def test_code_is_taken_on_loopback_or_where_it_is_told(
    database: Database[Any],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    setting: str,
    told: bool | None,
    taken: bool,
) -> None:
    monkeypatch.setenv("SUPERDUPER_REGISTER_CODE", setting)
    admin = {"Authorization": f"Bearer {Tokens(database).create('admin')['token']}"}
    server = make_server(database, host=host, insecure_bind=True, register_code=told)
    with (
        serving(server),
        httpx2.Client(base_url=server.url.replace("0.0.0.0", "127.0.0.1"), headers=admin) as http,
    ):
        for kinds in PLURALS.values():
            answer = http.put(f"/v1/collections/docs/{kinds}/thing", json={})
            assert answer.status_code == (422 if taken else 403), answer.text
            assert ("--register-code" in answer.text) is not taken
        assert http.get("/v1/status").status_code == 200


def test_a_setting_that_is_neither_yes_nor_no(
    database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_REGISTER_CODE", "perhaps")
    with pytest.raises(InvalidInput, match="auto, yes or no"):
        make_server(database)


def test_an_address_that_is_not_ours(database: Database[Any]) -> None:
    with pytest.raises(InvalidInput, match=r"cannot listen on 192\.0\.2\.1"):
        make_server(database, host="192.0.2.1", insecure_bind=True)


def test_the_server_never_imports_torch(server: Running) -> None:
    with server.http() as http:
        made = http.post("/v1/collections/docs/documents", json={"documents": [{"x": [1.0]}]})
        assert made.status_code == 201
        http.post("/v1/collections/docs/models/m/predict", json={"inputs": [1]})
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_importing_the_app_imports_no_torch() -> None:
    code = "import sys, superduper_server.serve; print([m for m in sys.modules if 'torch' in m])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_a_database_that_is_gone_at_the_start() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        uri = f"mongodb://user:geheim@127.0.0.1:{port}/?serverSelectionTimeoutMS=300"
        ended = run("serve", "--uri", uri, "--port", "0")
    assert ended.returncode == 1
    assert "geheim" not in ended.stderr
    assert str(port) in ended.stderr


def test_make_server_runs_in_a_thread(database: Database[Any]) -> None:
    with (
        serving(make_server(database, insecure=True)) as server,
        httpx2.Client(base_url=server.url) as http,
    ):
        assert http.get("/v1/status").json()["database"] == database.name
