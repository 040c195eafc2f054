"""What a fit learns from: documents read once, or the records that an earlier fit made of them.

Records (tensors in mapped files) are kept under two hashes: of what made them (model, target,
fields, versions) and of the data. A fit that finds records by the first hash reads the documents to
hash them; if the data is the same as well, nothing is preprocessed again.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from superduper import settings
from superduper.errors import InvalidInput
from superduper.imputations.fitting.documents import batches, documents
from superduper.imputations.fitting.folds import fold_of
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import input_values
from superduper.version import __version__

MIB = 1 << 20
WORKPLACE = "fit."
YOUNG_SECONDS = 60.0
HASH_DIGITS = 32

Batch = list[RawBSONDocument]
Ask = Callable[[Mapping[str, Any]], dict[str, Any]]
#: Told how many documents were read so far, and how many of them were skipped.
Report = Callable[[int, int], None]


class RecordCache:
    """A private folder of records; the least recently used go when it grows too large."""

    def __init__(self, root: Path, limit_mb: float) -> None:
        self.root = root
        self.limit_bytes = int(limit_mb * MIB)

    @classmethod
    def open(cls) -> "RecordCache":
        """The cache of this user on this machine.

        Raises InvalidInput if its folder is not this user's alone.
        """
        given = settings.get("CACHE")
        root = Path(given or Path(tempfile.gettempdir()) / f"superduper-cache-{os.getuid()}")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
        private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if not private or found.st_mode & 0o077:
            raise InvalidInput(
                f"{root} must be a folder of this user's that nobody else can enter (mode 0700): "
                "training data is kept there; or name another one in SUPERDUPER_CACHE"
            )
        return cls(root, settings.get_number("CACHE_MB"))

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder for one fit, removed afterwards; those of fits that were killed go as well."""
        self._sweep()
        with tempfile.TemporaryDirectory(prefix=WORKPLACE, dir=self.root) as folder:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield Path(folder)
            finally:
                os.close(lock)

    def _sweep(self) -> None:
        for folder in self.root.glob(f"{WORKPLACE}*"):
            with contextlib.suppress(OSError):  # in use, or just removed by another worker
                if time.time() - folder.stat().st_mtime < YOUNG_SECONDS:
                    continue  # it may not have its lock yet
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self.forget(folder)
                finally:
                    os.close(lock)

    def knows(self, recipe: str) -> bool:
        """Whether there are records of that making, of whatever data."""
        return any(self.root.glob(f"{recipe}-*"))

    def find(self, recipe: str, data: str) -> Path | None:
        """The records of that making and that data."""
        folder = self.root / f"{recipe}-{data}"
        try:
            os.utime(folder)
        except FileNotFoundError:
            return None
        return folder

    def keep(self, folder: Path, recipe: str, data: str) -> None:
        """Move whole records here; files that are open stay open."""
        with contextlib.suppress(OSError):  # another fit has just kept the same
            folder.rename(self.root / f"{recipe}-{data}")
        self._shrink()

    def forget(self, folder: Path) -> None:
        """Remove records."""
        shutil.rmtree(folder, ignore_errors=True)

    def _shrink(self) -> None:
        kept = sorted(self.root.glob("*-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for folder in kept:
            total += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if total > self.limit_bytes:
                self.forget(folder)


class FitData:
    """Brings the data of one fit to its child."""

    def __init__(
        self,
        database: Database[Any],
        record: ImputationRecord,
        cache: RecordCache,
        made_by: Mapping[str, Any],
    ) -> None:
        self.database = database
        self.record = record
        self.cache = cache
        versions = [sys.version, __version__]
        self.recipe = _short(sha256(bson.encode({"made by": made_by, "versions": versions})))

    def bring(self, ask: Ask, report: Report) -> "Brought":
        """Have the child open records that are kept, or make them of documents."""
        if self.cache.knows(self.recipe):
            data = self._hash(report)
            kept = self.cache.find(self.recipe, data)
            if kept is not None:
                if ask({"op": "reopen", "folder": str(kept)})["opened"]:
                    return Brought(self, data, reopened=True)
                self.cache.forget(kept)
        digest, read = sha256(), 0
        for batch in self._read(digest):
            folds = [fold_of(document) for document in batch]
            raw = [document.raw for document in batch]
            answer = ask({"op": "documents", "documents": raw, "folds": folds})
            read += len(batch)
            report(read, answer["skipped"])
        return Brought(self, _short(digest), reopened=False)

    def _hash(self, report: Report) -> str:
        digest, read = sha256(), 0
        for batch in self._read(digest):
            read += len(batch)
            report(read, 0)
        return _short(digest)

    def _read(self, digest: Any) -> Iterator[Batch]:
        """The documents in batches; what is learned from them goes into the digest."""
        paths = (*self.record.input_paths, *self.record.target_paths)
        with contextlib.closing(documents(self.database, self.record)) as found:
            for batch in batches(found):
                for document in batch:
                    values = input_values(document, paths, self.record.hidden_paths)
                    seen = {"": [document["_id"], fold_of(document), values]}
                    digest.update(bson.encode(seen))
                yield batch


class Brought:
    """The data of a fit, with its child."""

    def __init__(self, source: FitData, data: str, *, reopened: bool) -> None:
        self.reopened = reopened
        self._source = source
        self._data = data

    def keep(self, folder: Path) -> None:
        """Keep the records that the child has saved in this folder for later fits."""
        self._source.cache.keep(folder, self._source.recipe, self._data)


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:HASH_DIGITS])
