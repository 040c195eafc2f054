"""What is to be written for a batch of documents, and the updates that write it.

All that is to be filled in one document goes in one update, whichever imputations it is for: to the
store that is one write, one change and one event instead of several. Its guard is the guards of all
its fills, so it applies all of them or none. Where it does not apply, each imputation reads the
document again and goes on by itself, with an update for each field (`process.py`).
"""

from collections.abc import Collection as Members
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pymongo.collection import Collection

from superduper.imputations.corrections import Correction
from superduper.imputations.decide import Work
from superduper.imputations.echoes import Echoes
from superduper.imputations.failures import Case, key_of
from superduper.imputations.fill import Fill, Written, may_join, update_of, write
from superduper.imputations.isolate import Outcome
from superduper.imputations.layers import Layer
from superduper.imputations.provenance import value_hash


@dataclass
class Prepared:
    """What is to be written for one batch; `attempts` are those counted before a run alone."""

    fills: list[tuple[Work, Fill]] = field(default_factory=list)
    failed: list[tuple[Case, Mapping[str, Any]]] = field(default_factory=list)
    withheld: list[tuple[Case, Outcome]] = field(default_factory=list)
    without_value: list[tuple[Case, Outcome]] = field(default_factory=list)
    outside: list[tuple[Case, Mapping[str, Any]]] = field(default_factory=list)
    clearing: list[Work] = field(default_factory=list)
    suspects: list[Case] = field(default_factory=list)
    put_off: list[Case] = field(default_factory=list)
    corrected: list[Correction] = field(default_factory=list)
    settled: list[Any] = field(default_factory=list)
    known: set[bytes] = field(default_factory=set)
    attempts: dict[bytes, int] = field(default_factory=dict)
    #: The updates of its fills, where they were made before it is their turn.
    batch: "Batch | None" = None

    def buried(self) -> list[Layer]:
        """Values written over for another version's, not because their input changed."""
        return [
            Layer(fill.document_id, fill.target, old.value, old.record, value_hash(fill.record))
            for _, fill in self.fills
            if (old := fill.replaces) is not None
            and old.record.get("input") == fill.record["input"]
        ]

    def unrefused(self) -> dict[bytes, Any]:
        """The documents with fills that nothing speaks against, by `key_of` their `_id`."""
        noted = (*self.failed, *self.withheld, *self.without_value, *self.outside)
        refused = {key_of(case.document_id) for case, *_ in noted}
        ids = {key_of(work.document_id): work.document_id for work, _ in self.fills}
        return {key: each for key, each in ids.items() if key not in refused}

    def known_fills(self) -> list[Any]:
        """Those of them that have a record among the failures, which is out of date once filled."""
        if not self.known:
            return []
        return [each for key, each in self.unrefused().items() if key in self.known]


@dataclass(frozen=True)
class _Entry:
    """One fill of a batch: whose, and the key of its document."""

    part: Prepared
    case: Case
    fill: Fill
    key: bytes


class Batch:
    """The fills of one imputation, or of several for the same documents, ready to be sent.

    `apart` gives each fill an update of its own; documents whose key is in `exact` are compared
    with more care.
    """

    def __init__(
        self, parts: Sequence[Prepared], *, apart: bool = False, exact: Members[bytes] = ()
    ) -> None:
        entries = [
            _Entry(part, work.case, fill, key_of(fill.document_id))
            for part in parts
            for work, fill in part.fills
        ]
        self._groups = [[each] for each in entries] if apart else _grouped(entries)
        self._updates = [
            update_of(*(each.fill for each in group), exact=group[0].key in exact)
            for group in self._groups
        ]
        self._echoes = [(each.fill.target, each.key) for each in entries]
        self._modified = 0
        self._refused: list[_Entry] = []

    def send(self, collection: Collection[Any], echoes: Echoes) -> None:
        """Write, and note what failed; unless all took effect, no event is taken for granted."""
        echoes.expect(self._echoes)
        written = Written()
        try:
            written = write(collection, self._updates)
        finally:
            if written.modified < len(self._updates):
                echoes.withdraw(self._echoes)
        self._modified = written.modified
        for position, error in written.errors.items():
            first, *others = self._groups[position]
            # Of several fills nobody knows whose fault it is: each is tried by itself then.
            if not others:
                first.part.failed.append((first.case, error))
                self._refused.append(first)

    @property
    def complete(self) -> bool:
        """Whether each update took effect, but for those that were refused."""
        return self._modified + len(self._refused) == len(self._updates)

    def possible(self, part: Prepared) -> int:
        """How many of a part's fills were not refused."""
        return len(part.fills) - sum(each.part is part for each in self._refused)

    def filled(self, part: Prepared) -> int | None:
        """How many of a part's fills took effect; None if the count of updates does not tell."""
        if self.complete:
            return self.possible(part)
        simple = len(self._updates) == len(self._echoes) == len(part.fills)
        return self._modified if simple else None

    def tried_alone(self, part: Prepared) -> dict[bytes, str]:
        """The documents where a fill had an update to itself: their keys and inputs."""
        return {
            group[0].key: group[0].case.input
            for group in self._groups
            if len(group) == 1 and group[0].part is part
        }


def _grouped(entries: Iterable[_Entry]) -> list[list[_Entry]]:
    """Fills in groups of what one update can apply."""
    by_document: dict[bytes, list[list[_Entry]]] = {}
    for entry in entries:
        groups = by_document.setdefault(entry.key, [])
        for group in groups:
            if may_join(entry.fill, [other.fill for other in group]):
                group.append(entry)
                break
        else:
            groups.append([entry])
    return [group for groups in by_document.values() for group in groups]
