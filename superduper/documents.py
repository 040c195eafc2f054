"""The documents of a collection: pymongo's methods, with rich values, on both transports."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from bson import ObjectId
from pymongo.collection import Collection as MongoCollection
from pymongo.results import DeleteResult, InsertManyResult, InsertOneResult, UpdateResult

from superduper import commands
from superduper.command import build
from superduper.commands import Transport
from superduper.cursor import Cursor, filter_of, sort_keys
from superduper.errors import InvalidInput
from superduper.fields.codec import decode_document, encode, encode_document

INSERT_CHUNK = 1_000


class Documents:
    """What can be done with the documents of one collection.

    Arguments of pymongo's that are not listed here go to `native`, the pymongo collection, where
    there is one (not over HTTP).
    """

    def __init__(
        self, transport: Transport, name: str, native: MongoCollection[Any] | None = None
    ) -> None:
        self._transport = transport
        self._native = native
        self.name = name

    def _send(self, command: type[commands.OnCollection], **fields: Any) -> Any:
        return self._transport.send(build(command, collection=self.name, **fields))

    def _taking(self, options: Iterable[str]) -> MongoCollection[Any]:
        """The pymongo collection, for arguments that only it knows."""
        if self._native is None:
            raise _only_pymongos(options)
        return self._native

    def insert_one(self, document: dict[str, Any], **options: Any) -> InsertOneResult:
        """Insert a document; tensors, arrays and images go in as they are."""
        if options:
            return self._taking(options).insert_one(with_id(document), **options)
        return InsertOneResult(self.insert_many([document]).inserted_ids[0], True)

    def insert_many(
        self, documents: Iterable[dict[str, Any]], ordered: bool = True, **options: Any
    ) -> InsertManyResult:
        """Insert documents; each gets an `_id` if it has none, as with pymongo."""
        if options:
            native = self._taking(options)
            return native.insert_many(list(map(with_id, documents)), ordered, **options)
        ids: list[Any] = []
        chunk: list[dict[str, Any]] = []
        for document in documents:
            chunk.append(with_id(document))
            if len(chunk) >= INSERT_CHUNK:
                ids += self._insert(chunk, ordered)
                chunk = []
        if chunk or not ids:
            ids += self._insert(chunk, ordered)
        return InsertManyResult(ids, True)

    def _insert(self, documents: list[dict[str, Any]], ordered: bool) -> list[Any]:
        sent = self._send(commands.InsertDocuments, documents=documents, ordered=ordered)
        ids: list[Any] = sent["inserted_ids"]
        return ids

    def find(
        self,
        filter: Mapping[str, Any] | None = None,
        projection: Mapping[str, Any] | Sequence[str] | None = None,
        skip: int = 0,
        limit: int = 0,
        sort: Sequence[tuple[str, int]] | str | None = None,
        fresh: bool = False,
        **options: Any,
    ) -> Cursor:
        """The documents that match, read lazily; with `fresh` without stale values of ours.

        A document that matches, or has its place in the order, by a stale value is left out then.
        """
        if options and fresh:
            raise InvalidInput(f"{', '.join(options)}: pymongo's, which knows no fresh=True")
        return Cursor(
            self._transport,
            self.name,
            native=partial(self._taking(options).find, **options) if options else None,
            filter=_encoded(filter),
            projection=_projection(projection),
            skip=skip,
            limit=limit,
            sort=sort_keys(sort) if sort else None,
            fresh=fresh,
        )

    def find_one(
        self,
        filter: Any = None,
        projection: Mapping[str, Any] | Sequence[str] | None = None,
        skip: int = 0,
        sort: Sequence[tuple[str, int]] | str | None = None,
        fresh: bool = False,
        **options: Any,
    ) -> dict[str, Any] | None:
        """One document that matches (a bare value is an `_id`), or None; `fresh` as for `find`."""
        if options:
            with self.find(filter, projection, skip, 1, sort, fresh, **options) as first:
                return next(first, None)
        found = self._send(
            commands.FindDocuments,
            filter=_encoded(filter),
            projection=_projection(projection),
            skip=skip,
            limit=1,
            sort=sort_keys(sort) if sort else None,
            fresh=fresh,
        )["documents"]
        return decode_document(found[0]) if found else None

    def count_documents(self, filter: Mapping[str, Any], **options: Any) -> int:
        """The number of documents that match."""
        if options:
            return self._taking(options).count_documents(_encoded(filter), **options)
        return int(self._send(commands.CountDocuments, filter=_encoded(filter))["count"])

    def update_one(
        self, /, filter: Any, update: Any, upsert: bool = False, **options: Any
    ) -> UpdateResult:
        """Change the first document that matches."""
        if options:
            change = self._taking(options).update_one
            return change(_encoded(filter), encode(update), upsert, **options)
        return self._update(filter, update, many=False, upsert=upsert)

    def update_many(
        self, /, filter: Any, update: Any, upsert: bool = False, **options: Any
    ) -> UpdateResult:
        """Change all documents that match."""
        if options:
            change = self._taking(options).update_many
            return change(_encoded(filter), encode(update), upsert, **options)
        return self._update(filter, update, many=True, upsert=upsert)

    def _update(self, filter: Any, update: Any, *, many: bool, upsert: bool) -> UpdateResult:
        raw = self._send(
            commands.UpdateDocuments,
            filter=_encoded(filter),
            update=encode(update),
            many=many,
            upsert=upsert,
        )
        return UpdateResult(raw, True)

    def replace_one(
        self, /, filter: Any, replacement: Mapping[str, Any], upsert: bool = False, **options: Any
    ) -> UpdateResult:
        """Put another document in the place of the first that matches."""
        new = encode_document(replacement)
        if options:
            return self._taking(options).replace_one(_encoded(filter), new, upsert, **options)
        raw = self._send(
            commands.ReplaceDocument, filter=_encoded(filter), replacement=new, upsert=upsert
        )
        return UpdateResult(raw, True)

    def delete_one(self, /, filter: Any, **options: Any) -> DeleteResult:
        """Delete the first document that matches."""
        if options:
            return self._taking(options).delete_one(_encoded(filter), **options)
        return self._delete(filter, many=False)

    def delete_many(self, /, filter: Mapping[str, Any], **options: Any) -> DeleteResult:
        """Delete all documents that match."""
        if options:
            return self._taking(options).delete_many(_encoded(filter), **options)
        return self._delete(filter, many=True)

    def _delete(self, filter: Any, *, many: bool) -> DeleteResult:
        raw = self._send(commands.DeleteDocuments, filter=_encoded(filter), many=many)
        return DeleteResult(raw, True)


def refuse(options: Mapping[str, Any]) -> None:
    """Raise InvalidInput if there are arguments that only pymongo knows."""
    if options:
        raise _only_pymongos(options)


def _only_pymongos(options: Iterable[str]) -> InvalidInput:
    return InvalidInput(f"{', '.join(options)}: pymongo's, and not available over HTTP")


def with_id(document: dict[str, Any]) -> dict[str, Any]:
    """A document as BSON has it; the user's own gets an `_id` if it has none, as with pymongo."""
    if isinstance(document, MutableMapping):
        document.setdefault("_id", ObjectId())
    return encode_document(document)


def _encoded(filter: Any) -> dict[str, Any]:
    return {key: encode(value) for key, value in filter_of(filter).items()}


def _projection(projection: Any) -> Any:
    if projection is None or isinstance(projection, Mapping):
        return None if projection is None else dict(projection)
    return list(projection)
