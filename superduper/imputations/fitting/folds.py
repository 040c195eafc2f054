"""Which fold a document belongs to: the same one for life, whatever else is inserted or deleted.

`_fold` decides where a document carries it ("train", "valid" or "test"). Otherwise the SHA-256 of
the BSON of `{"_id": <_id>}` does: of 100 buckets, 0 to 9 are valid, 10 to 19 test, the rest train.
No fold is ever topped up from another, so a document never changes sides; a fit that finds the
valid fold empty validates on its training documents, and its run says so (`validated_on`).
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal

import bson

Fold = Literal["train", "valid", "test"]
FOLDS: tuple[Fold, ...] = ("train", "valid", "test")
FIELD = "_fold"

_BUCKETS = 100
_VALID_BELOW = 10
_TEST_BELOW = 20


def fold_of(document: Mapping[str, Any]) -> Fold:
    """The fold of a document, from its `_fold` or else its `_id`."""
    given = document.get(FIELD)
    for fold in FOLDS:
        if given == fold:
            return fold
    return fold_of_id(document["_id"])


def fold_of_id(document_id: Any) -> Fold:
    """The fold that an `_id` falls into."""
    digest = sha256(bson.encode({"_id": document_id})).digest()
    bucket = int.from_bytes(digest[:8], "big") % _BUCKETS
    if bucket < _VALID_BELOW:
        return "valid"
    return "test" if bucket < _TEST_BELOW else "train"
