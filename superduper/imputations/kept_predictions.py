"""Inputs and outputs of predictions that are made later: kept in parts, each well below 16 MB.

A part's inputs go when its outputs are there, so what is left of them is what is left to do. Values
are kept as BSON inside of binary data: they may have keys that no document could have.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import bson
from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.objectid import ObjectId
from pymongo.database import Database

from superduper.errors import TooLarge
from superduper.imputations.decide import RAW
from superduper.store.mongo import server_now_ms

NAME = "superduper.predictions"
PART_ROWS = 256
PART_BYTES = 8 << 20
MAX_BYTES = 15 << 20
PLAIN: CodecOptions[dict[str, Any]] = RAW.with_options(document_class=dict)
_HOUR_MS = 3_600_000

Row = dict[str, Any]


class KeptPredictions:
    """The collection `superduper.predictions` of one database."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database
        self._parts = database[NAME]
        self._indexed = False

    # Inputs ------------------------------------------------------------------------------------

    def keep_inputs(self, values: Iterable[Any]) -> str:
        """Keep inputs, and return the name under which inputs and outputs are found.

        Raises TooLarge that names an input which is too large by itself.
        """
        self._index()
        name, first = str(ObjectId()), 0
        for part in _parts(enumerate(values)):
            self._insert(name, "inputs", first, [value for _, value in part])
            first += len(part)
        return name

    def inputs(self, name: str) -> Iterator[tuple[int, list[Any]]]:
        """The parts that are left to do, in order: the number of the first row, and the values."""
        where, order = {"of": name, "what": "inputs"}, [("first", 1)]
        while part := self._parts.find_one(where, sort=order):
            yield part["first"], _values(part)

    def drop_inputs(self, name: str, first: int) -> None:
        """A part is done."""
        self._parts.delete_one({"of": name, "what": "inputs", "first": first})

    # Outputs -----------------------------------------------------------------------------------

    def keep_outputs(self, name: str, first: int, rows: Sequence[Row]) -> None:
        """Keep the rows from a number on, instead of any that were kept from there on before."""
        self._index()
        self._parts.delete_many({"of": name, "what": "outputs", "first": {"$gte": first}})
        for part in _parts(enumerate(map(_kept, rows), first)):
            kept = [row for _, row in part]
            failed = sum("error" in row for row in kept)
            self._insert(name, "outputs", part[0][0], kept, rows=len(kept), failed=failed)

    def outputs(self, name: str, first: int) -> tuple[list[Row], int]:
        """Some rows from a number on, none if there are none yet; and the number after them."""
        where = {"of": name, "what": "outputs", "first": {"$lte": first}}
        part = self._parts.find_one(where, sort=[("first", -1)])
        rows = _values(part)[first - part["first"] :] if part else []
        return rows, first + len(rows)

    def last(self, name: str) -> tuple[Row | None, int]:
        """The last row that is kept, and how many there are."""
        where = {"of": name, "what": "outputs"}
        part = self._parts.find_one(where, sort=[("first", -1)])
        if part is None:
            return None, 0
        rows = _values(part)
        return rows[-1], part["first"] + len(rows)

    def totals(self, name: str) -> dict[str, int]:
        """How many rows are kept, and how many of them are errors."""
        stages: list[dict[str, Any]] = [
            {"$match": {"of": name, "what": "outputs"}},
            {"$group": {"_id": 1, "rows": {"$sum": "$rows"}, "failed": {"$sum": "$failed"}}},
        ]
        found = next(iter(self._parts.aggregate(stages)), {"rows": 0, "failed": 0})
        return {"rows": int(found["rows"]), "failed": int(found["failed"])}

    # The end -----------------------------------------------------------------------------------

    def collect(self, hours: float) -> int:
        """Remove what belongs to jobs that ended so long ago, or that were never queued."""
        before = server_now_ms(self._database) - int(hours * _HOUR_MS)
        jobs = self._database["superduper.jobs"]
        removed = 0
        for name in self._parts.distinct("of", {"created_at": {"$lt": before}}):
            job = jobs.find_one({"args.kept": name}, {"finished_at": 1})
            ended = job is None or (job["finished_at"] or before) < before
            removed += self._parts.delete_many({"of": name}).deleted_count if ended else 0
        return removed

    def _insert(self, name: str, what: str, first: int, values: list[Any], **counts: int) -> None:
        data = Binary(bson.encode({"values": values}, codec_options=RAW))
        part = {"of": name, "what": what, "first": first, "data": data, **counts}
        self._parts.insert_one({**part, "created_at": server_now_ms(self._database)})

    def _index(self) -> None:
        if not self._indexed:
            self._parts.create_index([("of", 1), ("what", 1), ("first", 1)])
            self._indexed = True


def _values(part: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = bson.decode(part["data"], codec_options=PLAIN)["values"]
    return found


def _kept(row: Row) -> Row:
    """The row, or if it has no place in a part the error that says so."""
    if len(bson.encode(row, codec_options=RAW)) <= MAX_BYTES:
        return row
    document = {"document": row["document"]} if "document" in row else {}
    return {**document, "error": f"the output is over {MAX_BYTES >> 20} MiB: it cannot be kept"}


def _parts(numbered: Iterable[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    part: list[tuple[int, Any]] = []
    size = 0
    for number, value in numbered:
        weight = len(bson.encode({"": value}, codec_options=RAW))
        if weight > MAX_BYTES + 64:
            raise TooLarge(f"input {number} is over {MAX_BYTES >> 20} MiB: it cannot be kept")
        if part and (len(part) == PART_ROWS or size + weight > PART_BYTES):
            yield part
            part, size = [], 0
        part.append((number, value))
        size += weight
    if part:
        yield part
