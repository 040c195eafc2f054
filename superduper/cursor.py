"""The documents that match a filter, read lazily: the same on both transports."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from superduper.command import build
from superduper.commands import FindDocuments, Transport
from superduper.errors import InvalidInput
from superduper.fields.codec import decode_document

Sort = str | Sequence[tuple[str, int]]


def sort_keys(key: Sort, direction: int = 1) -> list[tuple[str, int]]:
    """A sort as pymongo takes it: a field and a direction, or a list of both."""
    return [(key, direction)] if isinstance(key, str) else [(k, d) for k, d in key]


class Cursor:
    """What `find` returns: iterate it once; `sort`, `skip` and `limit` before that."""

    def __init__(
        self,
        transport: Transport,
        collection: str,
        native: Callable[..., Iterator[dict[str, Any]]] | None = None,
        **query: Any,
    ) -> None:
        """With `native`, pymongo's `find` with arguments that only it knows, that is asked."""
        self._transport = transport
        self._native = native
        self._query: dict[str, Any] = {"collection": collection, "limit": 0, **query}
        self._documents: Iterator[dict[str, Any]] | None = None

    def _set(self, **query: Any) -> Self:
        if self._documents is not None:
            raise InvalidInput("the cursor has been read from: sort, skip and limit come before")
        self._query.update(query)
        return self

    def sort(self, key: Sort, direction: int = 1) -> Self:
        """Order by one field, or by several: `[("a", 1), ("b", -1)]`."""
        return self._set(sort=sort_keys(key, direction))

    def skip(self, count: int) -> Self:
        """Leave out the first `count` documents."""
        return self._set(skip=count)

    def limit(self, count: int) -> Self:
        """At most `count` documents; 0 is no limit."""
        return self._set(limit=count)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._documents is None:
            self._documents = self._begun()
        return decode_document(next(self._documents))

    def _begun(self) -> Iterator[dict[str, Any]]:
        command = build(FindDocuments, **self._query)
        if self._native is None:
            return self._transport.stream(command)
        return self._native(**command.model_dump(exclude={"collection", "fresh"}))

    def next(self) -> dict[str, Any]:
        """The next document; StopIteration after the last."""
        return next(self)

    def to_list(self, length: int | None = None) -> list[dict[str, Any]]:
        """The documents that are left, or at most `length` of them."""
        found: list[dict[str, Any]] = []
        for document in self:
            found.append(document)
            if length is not None and len(found) >= length:
                break
        return found

    def close(self) -> None:
        """Stop reading."""
        close = getattr(self._documents, "close", None)
        if close is not None:
            close()
        self._documents = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def filter_of(filter: Mapping[str, Any] | Any | None) -> dict[str, Any]:
    """A filter as pymongo takes it: a mapping, nothing, or a bare `_id`."""
    if filter is None:
        return {}
    return dict(filter) if isinstance(filter, Mapping) else {"_id": filter}
