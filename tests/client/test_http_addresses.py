"""Addresses, tokens and proxies of a client over HTTP."""

import pytest

from superduper import errors
from superduper_client.http import HttpTransport
from tests.client.answering import STATUS, Answers, unused_port


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "mongodb://h/",
        "http://",
        "http://user:password@h/",
        "http://h/?a=b",
        "http://h/#a",
        "http://h:99999/",
        "http://[::1/",
    ],
)
def test_urls_are_checked(url: str) -> None:
    with pytest.raises(errors.InvalidInput, match="URL is like http://") as caught:
        HttpTransport(url)
    assert "password@" not in str(caught.value)


def test_a_server_may_be_behind_a_path(answers: Answers) -> None:
    transport = HttpTransport(f"{answers.url}/under/here/")
    transport.send(STATUS)

    assert answers.asked[0].path == "/under/here/v1/status"
    assert "authorization" not in answers.asked[0].headers
    transport.close()


def test_tokens_are_checked(answers: Answers) -> None:
    transport = HttpTransport(answers.url, token="sd_abc\n")
    transport.send(STATUS)
    assert answers.asked[0].headers["authorization"] == "Bearer sd_abc"
    transport.close()

    for token in ("a b", "ä", "a\r\nX-Evil: 1", "\n"):
        with pytest.raises(errors.InvalidInput, match="characters that no token has"):
            HttpTransport(answers.url, token=token)


def test_proxies_are_not_asked_for_this_machine(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    transport = HttpTransport(answers.url)

    assert transport.send(STATUS) is None
    transport.close()
