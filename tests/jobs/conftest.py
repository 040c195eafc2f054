"""Fixtures for children and jobs."""

from collections.abc import Iterator

import pytest

from superduper.jobs.child import Child
from superduper.jobs.limits import Limits


@pytest.fixture
def child() -> Iterator[Child]:
    with Child("tests.jobs.entries:main", limits=Limits(memory_mb=512), name="test child") as child:
        yield child
