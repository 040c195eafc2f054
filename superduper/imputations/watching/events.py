"""Which changes of a collection matter to an imputation, told by the names of the fields alone.

Most changes that a watcher sees are its own fills coming back; they must cost nothing. A change
that may matter is only a hint: the document is read afresh and decided upon.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superduper.fields.paths import overlap
from superduper.imputations.corrections import Touch
from superduper.imputations.echoes import Echoes
from superduper.imputations.failures import key_of
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import BASE, FILL, fill_path
from superduper.store.changes import Change


@dataclass(frozen=True)
class Call:
    """What a batch of changes asks of one imputation."""

    record: ImputationRecord
    ids: Sequence[Any]
    #: The last time that a person wrote a field that we fill, by `key_of` the document.
    touched: Mapping[bytes, Touch]
    deleted: Sequence[Any]

    def __bool__(self) -> bool:
        return bool(self.ids or self.deleted)


def call_of(
    record: ImputationRecord,
    changes: Iterable[Change],
    echoes: Echoes,
    sources: Sequence[str] = (),
) -> Call:
    """What these changes ask of an imputation, whose values come from others in `sources`."""
    ids: dict[bytes, Any] = {}
    touched: dict[bytes, Touch] = {}
    deleted: list[Any] = []
    for change in changes:
        if change.kind == "delete":
            deleted.append(change.id)
        elif matters(record, change, echoes, sources):
            key = key_of(change.id)
            ids[key] = change.id
            if touched_by_person(record, change):
                touched[key] = Touch(change.cluster_time_ms, change.values)
    return Call(record, list(ids.values()), touched, deleted)


def touched_by_person(record: ImputationRecord, change: Change) -> bool:
    """Whether a field that we fill was set without its provenance: not by us, then.

    Who removes a value confirms nothing: what stands there now was filled since.
    """
    if change.touched is None:
        return False
    return any(
        _touches(change.touched - change.removed, path)
        and not _touches(change.touched, fill_path(path))
        for path in record.write_paths
    )


def matters(
    record: ImputationRecord, change: Change, echoes: Echoes, sources: Sequence[str] = ()
) -> bool:
    """Whether a document may need something of an imputation after this change."""
    touched = change.touched
    if touched is None:
        return True
    key = key_of(change.id)
    ours = {
        path
        for path in record.write_paths
        if _touches(touched, path)
        and _touches(touched, fill_path(path))
        and echoes.heard(path, key)
    }
    # Whoever waits for a source hears of it by the provenance: its value may be what it was.
    if any(_touches(touched, fill_path(path)) for path in sources):
        return True
    return any(_name_matters(record, name, ours) for name in touched)


def _touches(names: Iterable[str], path: str) -> bool:
    return any(overlap(name, path) for name in names)


def _name_matters(record: ImputationRecord, name: str, ours: set[str]) -> bool:
    if any(overlap(name, path) for path in record.input_paths):
        return True
    written = [path for path in record.write_paths if overlap(name, path)]
    if written:
        return not set(written) <= ours
    if overlap(name, FILL):
        return False
    return bool(BASE in record.input_paths or record.spec.get("filter"))
