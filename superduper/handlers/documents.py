"""Commands about documents, answered by pymongo."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from superduper import commands
from superduper.errors import InvalidInput
from superduper.handlers.context import Context
from superduper.imputations.fresh import fresh_documents

MAX_TIME_MS = 60_000
STREAM_BATCH = 500


def list_collections(context: Context, command: commands.ListCollections) -> list[dict[str, Any]]:
    """The user's collections, with their numbers of documents and imputations."""
    names = context.database.list_collection_names()
    imputations = [record.collection for record in context.imputations.find()]
    return [
        {
            "name": name,
            "documents": context.database[name].estimated_document_count(),
            "imputations": imputations.count(name),
        }
        for name in sorted(names)
        if not name.startswith(("superduper.", "system."))
    ]


def insert(context: Context, command: commands.InsertDocuments) -> dict[str, Any]:
    """Insert documents."""
    found = context.database[command.collection].insert_many(
        command.documents, ordered=command.ordered
    )
    return {"inserted_ids": found.inserted_ids}


def stream(context: Context, command: commands.FindDocuments) -> Iterator[dict[str, Any]]:
    """The documents that match, one after the other, in bounded memory."""
    if command.fresh:
        yield from fresh_documents(context.database, command, MAX_TIME_MS)
        return
    cursor = context.database[command.collection].find(
        command.filter,
        command.projection,
        skip=command.skip,
        limit=command.limit,
        sort=command.sort,
        batch_size=STREAM_BATCH if command.limit != 1 else 0,
        max_time_ms=MAX_TIME_MS,
    )
    with cursor:
        yield from cursor


def find(context: Context, command: commands.FindDocuments) -> dict[str, Any]:
    """The documents that match, as a list."""
    return {"documents": list(stream(context, command))}


def count(context: Context, command: commands.CountDocuments) -> dict[str, Any]:
    """The number of documents that match."""
    collection = context.database[command.collection]
    return {"count": collection.count_documents(command.filter, maxTimeMS=MAX_TIME_MS)}


def update(context: Context, command: commands.UpdateDocuments) -> dict[str, Any]:
    """Change one document or many."""
    collection = context.database[command.collection]
    change = collection.update_many if command.many else collection.update_one
    with _refusals():
        result = change(command.filter, command.update, upsert=command.upsert)
    return _changed(result.raw_result)


def replace(context: Context, command: commands.ReplaceDocument) -> dict[str, Any]:
    """Replace one document."""
    collection = context.database[command.collection]
    with _refusals():
        result = collection.replace_one(command.filter, command.replacement, upsert=command.upsert)
    return _changed(result.raw_result)


def delete(context: Context, command: commands.DeleteDocuments) -> dict[str, Any]:
    """Delete one document or many."""
    collection = context.database[command.collection]
    remove = collection.delete_many if command.many else collection.delete_one
    return {"n": remove(command.filter).deleted_count}


@contextmanager
def _refusals() -> Iterator[None]:
    """What pymongo refuses before it asks the database."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidInput(str(error)) from error


def _changed(raw: Any) -> dict[str, Any]:
    """The part of a server's reply that pymongo's UpdateResult reads."""
    found = {"n": raw.get("n", 0), "nModified": raw.get("nModified", 0)}
    if raw.get("upserted") is not None:
        found["upserted"] = raw["upserted"]
    return found
