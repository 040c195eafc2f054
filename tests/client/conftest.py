"""Fixtures of the client's tests."""

from collections.abc import Iterator

import pytest

from superduper_client.http import HttpTransport
from tests.client.answering import Answers, serving


@pytest.fixture
def answers() -> Iterator[Answers]:
    """A server that is asked by the test."""
    found = Answers()
    with serving(found):
        yield found


@pytest.fixture
def transport(answers: Answers) -> Iterator[HttpTransport]:
    """A transport to the server that says what it was asked."""
    found = HttpTransport(answers.url, token="sd_secret", retry_seconds=3)
    yield found
    found.close()
