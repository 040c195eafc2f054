"""Commands about documents and the collections that hold them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from superduper.command import COLLECTION, Command, Document, OnCollection, Path, Route


class ListCollections(Command):
    """Names of the collections, with their number of documents and imputations."""

    route = Route("GET", "/v1/collections")


class InsertDocuments(OnCollection):
    """Insert documents; answers `inserted_ids` in order."""

    route = Route("POST", f"{COLLECTION}/documents", role="writer", status=201)
    documents: Annotated[list[Document], Field(min_length=1, max_length=10_000)]
    ordered: bool = True


class FindDocuments(OnCollection):
    """Documents that match a filter; a limit of 0 (no limit) is for streams only.

    With `fresh` values of ours that are stale are left out.
    """

    route = Route("POST", f"{COLLECTION}/documents/query")
    filter: Document = {}
    projection: Document | list[str] | None = None
    sort: list[tuple[str, Literal[1, -1]]] | None = None
    skip: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=0)] = 100
    fresh: bool = False


class CountDocuments(OnCollection):
    """The number of documents that match a filter."""

    route = Route("POST", f"{COLLECTION}/documents/count")
    filter: Document = {}


class UpdateDocuments(OnCollection):
    """Change one document, or all that match."""

    route = Route("POST", f"{COLLECTION}/documents/update", role="writer", takes_long=True)
    filter: Document
    update: Document | list[Document]
    many: bool = False
    upsert: bool = False


class ReplaceDocument(OnCollection):
    """Put another document in the place of one."""

    route = Route("POST", f"{COLLECTION}/documents/replace", role="writer")
    filter: Document
    replacement: Document
    upsert: bool = False


class DeleteDocuments(OnCollection):
    """Delete one document, or all that match."""

    route = Route("POST", f"{COLLECTION}/documents/delete", role="writer", takes_long=True)
    filter: Document
    many: bool = False


class ExplainValue(OnCollection):
    """The whole story of a document's field: what made its value, or why it has none."""

    route = Route("POST", f"{COLLECTION}/documents/explain")
    id: Any
    field: Path
