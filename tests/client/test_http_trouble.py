"""What does not work at once over HTTP: repeated, given up, or left to the caller."""

import socket
import threading
import time
from typing import Any

import bson
import pytest

from superduper import commands, errors
from superduper.command import Command, build
from superduper_client.http import HttpTransport
from tests.client.answering import (
    INSERT,
    PREDICT,
    STATUS,
    Answers,
    Reply,
    refusal,
    result,
    serving,
    unused_port,
)


@pytest.mark.parametrize(
    "command", [STATUS, PREDICT, build(commands.CountDocuments, collection="d")]
)
@pytest.mark.parametrize(
    "failure",
    [
        refusal(503, "not_ready"),
        refusal(429, "too_many_requests"),
        Reply(503, b"", {}),
        Reply(502, b"<html>", {"Content-Type": "text/html"}),
        Reply(200, bson.encode({"result": 1}), cut=3),
    ],
)
def test_reading_is_repeated_until_it_works(
    answers: Answers, transport: HttpTransport, failure: Reply, command: Command
) -> None:
    answers.replies = [failure, failure, result("in the end")]

    assert transport.send(command) == "in the end"
    assert len(answers.asked) == 3


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (refusal(503, "not_ready"), errors.NotReady),
        (refusal(429, "too_many_requests"), errors.TooManyRequests),
        (Reply(200, bson.encode({"result": 1}), cut=3), errors.NotReady),
    ],
)
def test_writing_is_not_repeated(
    answers: Answers, transport: HttpTransport, failure: Reply, kind: type[Exception]
) -> None:
    answers.replies = [failure, result({"inserted_ids": [1]})]

    with pytest.raises(kind):
        transport.send(INSERT)
    assert len(answers.asked) == 1


def test_a_broken_connection_leaves_open_whether_a_write_was_done(
    answers: Answers, transport: HttpTransport
) -> None:
    answers.replies = [Reply(201, bson.encode({"result": 1}), cut=3)]

    with pytest.raises(errors.NotReady, match="may have been done or not, look before"):
        transport.send(INSERT)


def test_retry_after_is_kept_to(answers: Answers, transport: HttpTransport) -> None:
    answers.replies = [refusal(503, "not_ready", **{"Retry-After": "0.4"}), result(1)]

    began = time.monotonic()
    transport.send(STATUS)

    assert time.monotonic() - began >= 0.4


def test_a_wait_beyond_the_deadline_is_not_begun(
    answers: Answers, transport: HttpTransport
) -> None:
    answers.replies = [refusal(429, "too_many_requests", **{"Retry-After": "3600"})]

    began = time.monotonic()
    with pytest.raises(errors.TooManyRequests):
        transport.send(STATUS)

    assert time.monotonic() - began < 1
    assert len(answers.asked) == 1


def test_repeating_ends(answers: Answers) -> None:
    answers.replies = [refusal(503, "not_ready", "still starting")]
    transport = HttpTransport(answers.url, retry_seconds=0.5)

    began = time.monotonic()
    with pytest.raises(errors.NotReady, match="still starting"):
        transport.send(STATUS)
    assert time.monotonic() - began < 2
    assert len(answers.asked) > 2
    transport.close()


@pytest.mark.parametrize("command", [STATUS, INSERT])
def test_when_nobody_listens_the_error_names_the_url(command: Command) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    transport = HttpTransport(url, retry_seconds=0.3)

    with pytest.raises(errors.NotReady, match=rf"nothing answers at {url} .*superduper serve"):
        transport.send(command)
    transport.close()


@pytest.mark.parametrize("command", [STATUS, INSERT])
def test_a_server_that_starts_a_little_later_is_found(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers()
    answers.replies = [result({"inserted_ids": [1]})]
    port = unused_port()
    transport = HttpTransport(f"http://127.0.0.1:{port}")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(transport.send(command)))
    found_nobody, sleep = threading.Event(), time.sleep

    def pause(seconds: float) -> None:
        if threading.current_thread() is thread:
            found_nobody.set()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    thread.start()
    assert found_nobody.wait(10)
    with serving(answers, port):
        thread.join(10)

    assert found == [{"inserted_ids": [1]}]
    transport.close()


def test_a_server_that_is_silent_or_slow_is_given_up(answers: Answers) -> None:
    ended = threading.Event()
    transport = HttpTransport(answers.url, timeout=0.4)
    answers.replies = [Reply(200, before=lambda: ended.wait(10))]

    began = time.monotonic()
    with pytest.raises(errors.TimedOut, match=rf"{answers.url} did not answer GET /v1/status"):
        transport.send(STATUS)
    assert time.monotonic() - began < 5
    ended.set()
    transport.close()


def test_an_answer_that_trickles_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        transport = HttpTransport(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.5)

        def trickle() -> None:
            incoming, _ = listening.accept()
            with incoming:
                incoming.recv(65536)
                incoming.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                try:
                    while True:
                        incoming.sendall(b"x")
                        time.sleep(0.05)
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        with pytest.raises(errors.TimedOut, match="no complete answer .* within 0.5 s"):
            transport.send(STATUS)
        transport.close()
        thread.join(10)
