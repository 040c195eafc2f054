"""Connect to data: an embedded store, a MongoDB, or a server over HTTP."""

import atexit
import getpass
from collections.abc import Generator
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from superduper import settings
from superduper.collection import Database
from superduper.command import Command
from superduper.commands import FindDocuments, StreamPrediction
from superduper.errors import InvalidInput
from superduper.names import check_database

EMBEDDED = "embedded:"


class LocalTransport:
    """Commands answered by a service in this process."""

    def __init__(self, database: Any) -> None:
        from superduper.service import Service

        self.service = Service(database)
        self._author = getpass.getuser()

    def send(self, command: Command) -> Any:
        """The answer to a command."""
        return self.service.handle(command, self._author)

    def stream(
        self, command: FindDocuments | StreamPrediction
    ) -> Generator[dict[str, Any], None, None]:
        """The documents that match, or the pieces of a prediction, lazily."""
        return self.service.stream(command)

    def close(self) -> None:
        """End the service's child processes."""
        self.service.close()


class Client:
    """Databases by name: `client["shop"]["documents"]`."""

    def __init__(self, address: str, attachment: Any = None) -> None:
        from superduper.store.mongo import connect_mongo, require_replica_set

        self.address = address
        self._attachment = attachment
        self._mongo = connect_mongo(address)
        try:
            require_replica_set(self._mongo)
        except BaseException:
            self._mongo.close()
            raise
        self._transports: dict[str, LocalTransport] = {}
        atexit.register(self.close)

    def __getitem__(self, database: str) -> Database:
        if check_database(database) not in self._transports:
            self._transports[database] = LocalTransport(self._mongo[database])
        return Database(self._transports[database], database, self._mongo[database])

    def close(self) -> None:
        """Let go of the store and end the child processes of this client."""
        atexit.unregister(self.close)
        for transport in self._transports.values():
            transport.close()
        self._transports.clear()
        self._mongo.close()
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        from superduper.store.logs import redact

        return f"<Client {redact(self.address)}>"


def connect(
    uri: str | None = None, *, token: str | None = None, worker: Literal["auto", "none"] = "auto"
) -> Any:
    """Connect to `embedded:PATH`, `mongodb://...` or `http(s)://...`.

    Without a URI: `$SUPERDUPER_URI`, else an embedded store in `./superduper-data`, which is
    started if nobody has, together with a worker unless `worker="none"`.
    Raises InvalidInput for another kind of URI, NotReady if nothing answers there.
    """
    uri = uri or settings.get("URI")
    if worker not in ("auto", "none"):
        raise InvalidInput(f"worker={worker!r}: choose 'auto' or 'none'")
    if uri.startswith(EMBEDDED):
        from superduper.store.embedded import attach

        attachment = attach(uri.removeprefix(EMBEDDED), worker=worker == "auto")
        try:
            return Client(attachment.address, attachment)
        except BaseException:
            attachment.close()
            raise
    scheme = urlsplit(uri).scheme
    if scheme in ("mongodb", "mongodb+srv"):
        return Client(uri)
    if scheme in ("http", "https"):
        from superduper_client import connect as connect_http

        return connect_http(uri, token=token)
    raise InvalidInput(f"URI {uri!r}: start it with embedded:, mongodb:// or http://")
