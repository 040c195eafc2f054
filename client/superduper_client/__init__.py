"""The same facade over HTTP, without torch."""

from superduper_client.aio import AsyncClient, aconnect
from superduper_client.client import Client, connect

__all__ = ["AsyncClient", "Client", "aconnect", "connect"]
