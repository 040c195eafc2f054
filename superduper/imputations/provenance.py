"""Who wrote a value: the hashes in `_fill`, by which our own values are told from a person's.

A value is ours while `_fill.<path>` is there and its `value` is the hash of what stands in the
field now; anything else was given by a person, and is never overwritten and may be learned from.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import bson

from superduper.fields import paths

FILL = "_fill"
BASE = "_base"
_NOT_DATA = ("_id", "_fold", FILL)
_OF_RECORD = {"imputation": str, "version": int, "at": int, "input": str, "value": str}


def value_hash(value: Any) -> str:
    """16 hex digits for one BSON value; equal for equal values of equal BSON types."""
    return blake2b(bson.encode({"": value}), digest_size=8).hexdigest()


def input_hash(values: Sequence[Any]) -> str:
    """32 hex digits for the input values of one document, in the order of the input paths."""
    digest = blake2b(digest_size=16)
    for value in values:
        # Each part is a BSON document, which begins with its length: parts cannot run together.
        digest.update(bson.encode({"": value}))
    return digest.hexdigest()


def fill_path(target_path: str) -> str:
    """Where the provenance of a field is kept."""
    return f"{FILL}.{target_path}"


def fill_of(document: Mapping[str, Any], target_path: str) -> Mapping[str, Any] | None:
    """The provenance record of a field, or None where there is none.

    Whoever may write documents may write anything there: what we would not have written is none.
    """
    record = paths.get(document, fill_path(target_path))
    if not isinstance(record, Mapping):
        return None
    is_whole = all(isinstance(record.get(name), kind) for name, kind in _OF_RECORD.items())
    return record if is_whole else None


def is_ours(document: Mapping[str, Any], target_path: str) -> bool:
    """Whether the field's present value is one that an imputation wrote and nobody changed."""
    record = fill_of(document, target_path)
    value = paths.get(document, target_path)
    if record is None or value is paths.MISSING:
        return False
    return bool(record["value"] == value_hash(value))


def fill_record(
    *,
    imputation: str,
    version: int,
    at: int,
    inputs: str,
    value: Any,
    confidence: float | None = None,
) -> dict[str, Any]:
    """What is written to `_fill.<path>` beside a value; `inputs` is the hash of the inputs."""
    record: dict[str, Any] = {
        "imputation": imputation,
        "version": version,
        "at": at,
        "input": inputs,
        "value": value_hash(value),
    }
    if confidence is not None:
        record["confidence"] = confidence
    return record


def input_values(
    document: Mapping[str, Any], input_paths: Sequence[str], exclude: Sequence[str] = ()
) -> list[Any] | None:
    """What a model reads of a document, one value per path; None where a field is missing.

    The path `_base` is the whole document without `_id`, `_fold` and `_fill`, and without the
    fields in `exclude` (what the imputation itself writes, or learns from).
    """
    values = [
        _without(document, [*_NOT_DATA, *exclude]) if path == BASE else paths.get(document, path)
        for path in input_paths
    ]
    return None if any(value is paths.MISSING for value in values) else values


def as_one_value(values: Sequence[Any], value_paths: Sequence[str]) -> Any:
    """What models and targets get: one field's value as it is, several as a dictionary by path."""
    return values[0] if len(value_paths) == 1 else dict(zip(value_paths, values, strict=True))


def _without(document: Mapping[str, Any], excluded: Sequence[str]) -> dict[str, Any]:
    here = {path for path in excluded if "." not in path}
    kept = {key: value for key, value in document.items() if key not in here}
    for path in excluded:
        head, _, rest = path.partition(".")
        if rest and isinstance(kept.get(head), Mapping):
            kept[head] = _without(kept[head], [rest])
    return kept
