"""What a document needs of an imputation, and how a model's output is laid out over its fields."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument

from superduper.fields import paths
from superduper.imputations.failures import Case
from superduper.imputations.fill import Stale
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import (
    BASE,
    FILL,
    fill_of,
    input_hash,
    input_values,
    is_ours,
)

# Bytes that are not UTF-8 and dates that no datetime holds are data too.
RAW = CodecOptions(
    document_class=RawBSONDocument,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)


@dataclass(frozen=True)
class Work:
    """A document that needs something: fields that are missing, or ours and outdated."""

    document: RawBSONDocument
    values: Sequence[Any]
    case: Case
    missing: tuple[str, ...]
    stale: Mapping[str, Stale]

    @property
    def input_changed(self) -> bool:
        """Whether a value of ours belongs to another input than the present one."""
        return any(each.record.get("input") != self.case.input for each in self.stale.values())

    @property
    def document_id(self) -> Any:
        """The document's `_id`."""
        return self.case.document_id


def decide(record: ImputationRecord, document: RawBSONDocument) -> Work | None:
    """What a document needs of an imputation, or None."""
    hidden = {*record.write_paths, *record.target_paths}
    values = input_values(document, record.input_paths, exclude=sorted(hidden))
    if values is None or record.active is None:
        return None
    missing, stale = [], {}
    hashed = input_hash(values)
    keeps = record.spec.get("on_input_change", "refill") == "keep"
    for path in record.write_paths:
        value = paths.get(document, path)
        if value is paths.MISSING:
            missing.append(path)
            continue
        fill = fill_of(document, path)
        if fill is None or fill.get("imputation") != record.name:
            continue
        changed = fill.get("input") != hashed and not keeps
        if (changed or fill.get("version") == record.refilled) and is_ours(document, path):
            stale[path] = Stale(value, fill)
    if not missing and not stale:
        return None
    case = Case(document["_id"], hashed, record.active)
    return Work(document, values, case, tuple(missing), stale)


def read_as(
    record: ImputationRecord, document: RawBSONDocument, values: Sequence[Any]
) -> dict[str, Any]:
    """The inputs by path, as they must still be when a value computed from them is written."""
    if BASE in record.input_paths:
        return {BASE: document}
    return dict(zip(record.input_paths, values, strict=True))


def projection_of(records: Sequence[ImputationRecord]) -> dict[str, int] | None:
    """The fields that `decide` reads for any of these; None for all of them."""
    if any(BASE in record.input_paths for record in records):
        return None
    read = (path for each in records for path in (*each.input_paths, *each.write_paths))
    return paths.projection((*read, FILL))


class NoValue(ValueError):
    """The model ran, and its answer is that it has no value."""


def split_outputs(value: Any, write_paths: Sequence[str]) -> dict[str, Any]:
    """A model's output by field.

    Raises NoValue if one of them is None, ValueError if it is not one value for each field.
    """
    if len(write_paths) == 1:
        outputs = {write_paths[0]: value}
    elif isinstance(value, Mapping) and set(value) >= set(write_paths):
        outputs = {path: value[path] for path in write_paths}
    elif isinstance(value, list) and len(value) == len(write_paths):
        outputs = dict(zip(write_paths, value, strict=True))
    else:
        raise ValueError(
            f"the model fills {len(write_paths)} fields ({', '.join(write_paths)}) and must return "
            "a dictionary by field, or a list of as many values"
        )
    for path, output in outputs.items():
        if output is None:
            raise NoValue(f"the model returned None for {path!r}, which is no value")
        if isinstance(output, float) and math.isnan(output):
            raise ValueError(f"the model returned nan for {path!r}, which is no value")
    return outputs
