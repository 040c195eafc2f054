"""The same facade over HTTP, without torch."""

from superduper_client.client import Client, connect

__all__ = ["Client", "connect"]
