"""The short form of the backfill of a million documents: `scripts/bench scale` is the long one."""

import pytest

from benchmarks.scale import measure


def test_a_backfill_whose_worker_is_killed_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERDUPER_LEASE_SECONDS", "2")
    figures = measure(2_000, kills=1)
    assert (figures["blank"], figures["wrong"], figures["kills"]) == (0, 0, 1)
    assert figures["looked_at"] < 3_500, "what was done before the kill is not done again"
