"""Connect to a server over HTTP: databases, collections and documents as in the core, no torch."""

from collections.abc import Generator
from typing import Any, Self

from superduper import settings
from superduper.collection import Database
from superduper.command import Command, build
from superduper.commands import FindDocuments, ShowStatus, StreamPrediction
from superduper.errors import InvalidInput, NotFound
from superduper_client.http import HttpTransport


class Client:
    """The database that a server serves: `client["shop"]["documents"]`."""

    def __init__(self, url: str, token: str | None = None, timeout: float | None = None) -> None:
        self._transport = HttpTransport(url, token, timeout)
        self._served: str | None = None

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._transport.url

    def __getitem__(self, database: str) -> Database:
        return Database(_DatabaseTransport(self, self._transport, database), database)

    def check_database(self, name: str) -> None:
        """Ask the server once what it serves.

        Raises NotFound, with the name of the database that it serves, if it is another.
        """
        if self._served is None:
            self._served = str(self._transport.send(build(ShowStatus))["database"])
        check_served(self.url, self._served, name)

    def close(self) -> None:
        """Close the connections to the server."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.url}>"


def check_served(url: str, served: str, name: str) -> None:
    """Refuse a database that a server does not serve.

    Raises NotFound, with the name of the one that it serves.
    """
    if name != served:
        raise NotFound(
            f"the server at {url} serves the database {served!r}, not {name!r}: use "
            f"client[{served!r}], or a server started with --database {name}"
        )


class _DatabaseTransport:
    """Commands to a server, once it is known to serve the database that they are meant for."""

    def __init__(self, client: Client, transport: HttpTransport, database: str) -> None:
        self._client = client
        self._transport = transport
        self._database = database

    def send(self, command: Command) -> Any:
        """The answer to a command."""
        self._client.check_database(self._database)
        return self._transport.send(command)

    def stream(
        self, command: FindDocuments | StreamPrediction
    ) -> Generator[dict[str, Any], None, None]:
        """The documents that match, or the pieces of a prediction, as they come."""
        self._client.check_database(self._database)
        return self._transport.stream(command)

    def close(self) -> None:
        """Nothing: the connections are the client's."""


def connect(
    url: str | None = None, token: str | None = None, timeout: float | None = None
) -> Client:
    """Connect to a server: `$SUPERDUPER_URI` and `$SUPERDUPER_TOKEN` unless they are given.

    Nothing is sent yet. Raises InvalidInput if it is no http:// or https:// address.
    """
    url = url or settings.get("URI")
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(
            f"superduper_client takes URLs that start with http:// or https://, not with "
            f"{url.partition(':')[0][:20]!r}: superduper.connect() takes the others too"
        )
    return Client(url, token or settings.get("TOKEN") or None, timeout)
