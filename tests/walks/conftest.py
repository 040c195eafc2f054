"""Real stores for the walks: the fixtures of the store's own tests."""

from tests.store.conftest import secantus, small_disk, store

__all__ = ["secantus", "small_disk", "store"]
