"""A MongoDB collection whose missing fields fill themselves."""

from typing import TYPE_CHECKING

from superduper.version import __version__

if TYPE_CHECKING:
    from superduper.connection import Client, connect

__all__ = ["Client", "__version__", "connect"]


def __getattr__(name: str) -> object:
    """Import the connection on first use, so that `import superduper` stays cheap."""
    if name in ("Client", "connect"):
        from superduper import connection

        return getattr(connection, name)
    raise AttributeError(f"module 'superduper' has no attribute {name!r}")
