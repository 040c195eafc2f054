"""Fixtures for children and jobs."""

from collections.abc import Iterator

import pytest

from superduper.jobs import launching
from superduper.jobs.child import Child
from superduper.jobs.limits import Limits


@pytest.fixture(params=["forked", "executed"])
def child(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setattr(launching, "FORKS", request.param == "forked")
    with Child("tests.jobs.entries:main", limits=Limits(memory_mb=512), name="test child") as child:
        yield child
