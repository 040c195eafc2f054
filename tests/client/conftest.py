"""Fixtures of the client's tests."""

from collections.abc import Iterator

import pytest

from tests.client.answering import Answers, serving


@pytest.fixture
def answers() -> Iterator[Answers]:
    """A server that is asked by the test."""
    found = Answers()
    with serving(found):
        yield found
