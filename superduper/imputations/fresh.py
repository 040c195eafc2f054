"""Documents without their stale values, for who would rather have none than an outdated one.

A stale value and its provenance are left out of the document, as if it were not filled yet. A
document that was found or placed by a stale value (by the filter or the sort) is left out whole.
Each document is judged by itself as it was read: inputs, values and provenance in one look.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from superduper.commands import FindDocuments
from superduper.errors import InvalidInput
from superduper.fields.paths import overlap
from superduper.imputations.decide import RAW
from superduper.imputations.graph import Graph, own_fills
from superduper.imputations.imputation import Imputations
from superduper.imputations.provenance import FILL, fill_path

BATCH = 500
Tree = dict[str, Any]


def fresh_documents(
    database: Database[Any], command: FindDocuments, max_time_ms: int
) -> Iterator[dict[str, Any]]:
    """What a query finds, without what is stale.

    Raises InvalidInput for a projection that does more than let fields in or leave them out.
    """
    graph = Graph(Imputations(database).find(command.collection))
    projection = _Projection(command.projection)
    read = [*_fields(command.filter), *(field for field, _ in command.sort or ())]
    cursor = (
        database[command.collection]
        .with_options(RAW)
        .find(
            command.filter,
            sort=command.sort,
            batch_size=min(BATCH, command.skip + command.limit or BATCH),
            max_time_ms=max_time_ms,
        )
    )

    def found() -> Iterator[dict[str, Any]]:
        for document in cursor:
            stale = _stale(graph, document)
            if not any(overlap(path, field) for path in stale for field in read):
                yield projection.of(_without(document, stale))

    with cursor:
        last = command.skip + command.limit if command.limit else None
        yield from islice(found(), command.skip, last)


def _stale(graph: Graph, document: RawBSONDocument) -> list[str]:
    """The fields that hold a stale value."""
    stale = []
    for record in graph.records:
        ours = [path for path, _ in own_fills(record, document)]
        if ours and not graph.is_fresh(record, document):
            stale += ours
    return stale


def _fields(filter: Any) -> Iterator[str]:
    """The fields that a filter reads."""
    if isinstance(filter, Mapping):
        for key, value in filter.items():
            if key == "$expr":
                raise InvalidInput("fresh=True takes no $expr: it may read any field")
            if not key.startswith("$"):
                yield key
            elif isinstance(value, list):
                yield from (field for each in value for field in _fields(each))


def _without(document: RawBSONDocument, stale: Sequence[str]) -> dict[str, Any]:
    whole = bson.decode(document.raw)
    if not stale:
        return whole
    whole = _left_out(whole, _tree([place for path in stale for place in (path, fill_path(path))]))
    left = _without_empty(whole.pop(FILL, {}))
    return {**whole, FILL: left} if left else whole


def _without_empty(provenance: Mapping[str, Any]) -> dict[str, Any]:
    left = {k: _without_empty(v) if isinstance(v, Mapping) else v for k, v in provenance.items()}
    return {key: value for key, value in left.items() if value != {}}


# Projections ---------------------------------------------------------------------------------


class _Projection:
    """Lets fields in or leaves them out, when their freshness has been judged."""

    def __init__(self, projection: Mapping[str, Any] | Sequence[str] | None) -> None:
        given = projection or {}
        flags = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, 1)
        if any(flag not in (0, 1) for flag in flags.values()):
            raise InvalidInput("with fresh=True a projection's values are 0 and 1 only")
        with_id = bool(flags.pop("_id", 1))
        self._lets_in = any(flags.values())
        if self._lets_in and not all(flags.values()):
            raise InvalidInput("a projection lets fields in or leaves them out, not both")
        # `{"_id": 1}` alone lets in nothing else.
        if not flags and "_id" in given and with_id:
            self._lets_in = True
        shown = [*flags, *(["_id"] if with_id == self._lets_in else [])]
        self._tree = _tree(shown)

    def of(self, document: dict[str, Any]) -> dict[str, Any]:
        """What is to be seen of a document."""
        return (_let_in if self._lets_in else _left_out)(document, self._tree)


def _tree(paths: Sequence[str]) -> Tree:
    tree: Tree = {}
    for path in sorted(paths):
        place, (*parents, last) = tree, path.split(".")
        for segment in parents:
            place = place.setdefault(segment, {})
            if place is None:
                break
        if place is not None:
            place.setdefault(last, None)
    return tree


def _let_in(document: Mapping[str, Any], tree: Tree) -> dict[str, Any]:
    shown = {}
    for key in document.keys() & tree.keys():
        value = document[key]
        if tree[key] is None:
            shown[key] = value
        elif isinstance(value, Mapping):
            shown[key] = _let_in(value, tree[key])
        elif isinstance(value, list):
            shown[key] = [_let_in(each, tree[key]) for each in value if isinstance(each, Mapping)]
    return {key: shown[key] for key in document if key in shown}


def _left_out(document: Mapping[str, Any], tree: Tree) -> dict[str, Any]:
    shown = {}
    for key, value in document.items():
        if key not in tree:
            shown[key] = value
        elif tree[key] is None:
            continue
        elif isinstance(value, Mapping):
            shown[key] = _left_out(value, tree[key])
        elif isinstance(value, list):
            parts = tree[key]
            shown[key] = [_left_out(e, parts) if isinstance(e, Mapping) else e for e in value]
        else:
            shown[key] = value
    return shown
