"""Real stores, servers and workers for the walks."""

from tests.store.conftest import secantus

__all__ = ["secantus"]
