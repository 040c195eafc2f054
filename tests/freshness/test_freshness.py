"""What is computed anew is what depends on the change, once each; a short `tests.freshness`."""

from typing import Any

import pytest
from pymongo.database import Database

from superduper.imputations.graph import Graph
from tests.freshness.scripts import Script


@pytest.mark.parametrize("seed", range(5))
def test_exactly_what_is_affected_is_computed_anew(database: Database[Any], seed: int) -> None:
    assert Script(database, seed).run(edits=4) > 10


def test_it_would_see_a_model_that_runs_in_vain(
    database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting, the far end of a diamond is computed twice."""
    monkeypatch.setattr(Graph, "waits", lambda *_: False)
    with pytest.raises(AssertionError, match="ran on"):
        Script(database, 1).run(edits=8)
