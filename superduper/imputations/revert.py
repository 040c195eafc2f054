"""Take back what a version wrote, where its value still stands; and put it back again.

What was there before comes back: nothing, or the value of an earlier version that this one wrote
over, unless its input has changed since. A person's value is never touched. Each change is one
conditional update, and what may be needed to undo it is kept before; so both may be broken off
anywhere and run again. What was computed from a value that is gone is stale from that moment.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.database import Database

from superduper.fields import paths
from superduper.imputations import layers as kept
from superduper.imputations.decide import RAW, projection_of, read_as
from superduper.imputations.failures import Case, Failures, key_of
from superduper.imputations.fill import Fill, Stale, removal_of, update_of, write
from superduper.imputations.graph import inputs_of, own_fills
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.layers import BATCH, Layer, Layers, Pile, piles, uppermost
from superduper.imputations.provenance import fill_of, fill_path, input_hash
from superduper.store.by_id import find_by_ids
from superduper.store.mongo import server_now_ms


def revert_version(database: Database[Any], record: ImputationRecord, version: int) -> int:
    """Take back the values of a version that nobody changed since; answers how many."""
    return _Undo(database, record, version).revert()


def redo_version(database: Database[Any], record: ImputationRecord, version: int) -> int:
    """Put back what was taken, where what was left then still stands; answers how many."""
    return _Undo(database, record, version).redo()


@dataclass(frozen=True)
class _Present:
    """A field of a document as it is: a value of ours, or nothing at all."""

    document: RawBSONDocument
    path: str
    inputs: Sequence[Any] | None
    layer: Layer | None

    @property
    def inputs_hash(self) -> str | None:
        return None if self.inputs is None else input_hash(self.inputs)

    @property
    def ours(self) -> Stale | None:
        return None if self.layer is None else Stale(self.layer.value, self.layer.record)


class _Undo:
    """Undoes or redoes one version of one imputation."""

    def __init__(self, database: Database[Any], record: ImputationRecord, version: int) -> None:
        kept.prepare(database)
        self.record = record
        self.version = version
        self.collection = database[record.collection].with_options(RAW)
        self.layers = Layers(database, record.id)
        self.failures = Failures(database, record.id)
        self.now = server_now_ms(database)

    def revert(self) -> int:
        """Withdraw the version's layers, then what shows of it in documents."""
        self.layers.withdraw(self.version)
        return sum(self._take(documents) for documents in self._with_its_values())

    def redo(self) -> int:
        """Let the version's layers count again, after documents show what then is uppermost."""
        return sum(self._put_back(self._read(ids)) for ids in self.layers.withdrawn(self.version))

    # Documents -------------------------------------------------------------------------------

    def _with_its_values(self) -> Iterator[list[RawBSONDocument]]:
        places = [fill_path(path) for path in self.record.write_paths]
        its = [
            {f"{place}.imputation": self.record.name, f"{place}.version": self.version}
            for place in places
        ]
        batch: list[RawBSONDocument] = []
        with self.collection.find(
            {"$or": its}, projection_of([self.record]), batch_size=BATCH
        ) as found:
            for document in found:
                batch.append(document)
                if len(batch) == BATCH:
                    yield batch
                    batch = []
        yield batch

    def _read(self, document_ids: Sequence[Any]) -> list[RawBSONDocument]:
        return list(find_by_ids(self.collection, document_ids, projection_of([self.record])))

    def _present(self, documents: Iterable[RawBSONDocument]) -> Iterator[_Present]:
        """The fields that hold a value of ours, or neither value nor provenance."""
        for document in documents:
            inputs = inputs_of(self.record, document)
            ours = dict(own_fills(self.record, document))
            for path in self.record.write_paths:
                value, layer = paths.get(document, path), None
                if path in ours:
                    layer = Layer(document["_id"], path, value, ours[path])
                elif value is not paths.MISSING or fill_of(document, path) is not None:
                    continue
                yield _Present(document, path, inputs, layer)

    # Taking back -----------------------------------------------------------------------------

    def _take(self, documents: Sequence[RawBSONDocument]) -> int:
        known = self.layers.of([document["_id"] for document in documents])
        taken: list[Layer] = []
        emptied: list[Case] = []
        updates: list[UpdateOne] = []
        for here in self._present(documents):
            if here.layer is None or here.layer.record["version"] != self.version:
                continue
            below = _beneath(here.layer, known.get(here.layer.place, []))
            left = uppermost(below, here.inputs_hash)
            taken.append(replace(here.layer, withdrawn=True))
            if left is None:
                case = (here.document["_id"], here.layer.record["input"], self.version)
                emptied.append(Case(*case))
            updates.append(self._change(here, left))
        self.layers.keep(taken)
        if self.version == self.record.active:  # or it would fill them again at once
            self.failures.take_back(emptied, self.now)
        return write(self.collection, updates).modified

    # Putting back ----------------------------------------------------------------------------

    def _put_back(self, documents: Sequence[RawBSONDocument]) -> int:
        known = self.layers.of([document["_id"] for document in documents])
        updates: list[UpdateOne] = []
        settled: list[Layer] = []
        shown: list[Any] = []
        for here in self._present(documents):
            place = (key_of(here.document["_id"]), here.path)
            pile = self._pile_of(here, known.get(place, []))
            again = [self._counting(each) for each in pile]
            settled += [each for each in again if each not in pile]
            showing = uppermost(again, here.inputs_hash)
            if showing is not None and (here.layer is None or showing.id != here.layer.id):
                updates.append(self._change(here, showing))
                shown.append(here.document["_id"])
        done = write(self.collection, updates).modified
        self.layers.keep(settled)
        self.failures.forget_known(shown)
        return done

    def _counting(self, layer: Layer) -> Layer:
        its = layer.withdrawn and layer.record["version"] == self.version
        return replace(layer, withdrawn=False) if its else layer

    def _pile_of(self, here: _Present, layers: list[Layer]) -> Pile:
        """The pile whose uppermost layer shows, if one of the version's is withdrawn in it.

        Where nothing shows that is the latest pile of which nothing should show.
        """
        for pile in piles(layers):
            if here.layer is not None and pile[0].under == here.layer.id:
                pile = [here.layer, *pile]
            if all(self._counting(each) is each for each in pile) or not _fits(pile, here):
                continue
            return pile
        return ()

    def _change(self, here: _Present, showing: Layer | None) -> UpdateOne:
        """The update after which another layer of ours shows, or none."""
        document_id = here.document["_id"]
        if showing is None:
            assert here.ours is not None  # what is empty is not emptied
            return removal_of(document_id, here.path, here.ours)
        assert here.inputs is not None  # a layer shows only with the inputs it was computed from
        inputs = read_as(self.record, here.document, here.inputs)
        fill = Fill(document_id, inputs, here.path, showing.value, showing.record, here.ours)
        return update_of(fill)


def _fits(pile: Pile, here: _Present) -> bool:
    """Whether a field is as a revert has left it: nobody wrote to it since."""
    if here.layer is not None:
        shows = next((each for each in pile if not each.withdrawn), None)
        return shows is not None and shows.id == here.layer.id
    return pile[0].under is None and uppermost(pile, here.inputs_hash) is None


def _beneath(layer: Layer, layers: list[Layer]) -> list[Layer]:
    """The layers under a present value, the uppermost first."""
    for pile in piles(layers):
        for depth, each in enumerate(pile):
            if each.id == layer.id:
                return list(pile[depth + 1 :])
            if each.under == layer.id:
                return list(pile[depth:])
    return []
