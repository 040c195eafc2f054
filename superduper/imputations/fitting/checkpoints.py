"""Checkpoints of a fit in the database, so that another worker can go on from them.

A checkpoint is two files in GridFS, `state.json` and `tensors.safetensors` (see
`superduper.training.checkpoints`), and then a signed record with their hashes: the record is the
commit point. The newest two of a fit stay. Files that no record names are removed by `collect`.
"""

import contextlib
import datetime
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gridfs import GridFSBucket
from gridfs.errors import GridFSError, NoFile
from pymongo.database import Database

from superduper.errors import ArtifactRejected
from superduper.store import garbage
from superduper.store.mongo import server_now_ms
from superduper.store.signing import Keyring, verify
from superduper.training.checkpoint_files import MANIFEST, PARTS, PREFIX, manifest

logger = logging.getLogger(__name__)

NAME = "superduper.checkpoints"
KEPT = 2
_CHUNK_BYTES = 1 << 20
_HOUR_MS = 3_600_000


class OtherFit(Exception):
    """A checkpoint is of other data or of another model: it is not gone on from."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that was fetched: its step, the epochs done, who wrote it, and where it lies."""

    step: int
    epochs: int
    run: str
    folder: Path


class FitCheckpoints:
    """The checkpoints of fits in one database."""

    def __init__(self, database: Database[Any], keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring
        self._records = database[NAME]
        self._files = database[f"{NAME}.files"]
        self._blobs = GridFSBucket(database, bucket_name=NAME, chunk_size_bytes=_CHUNK_BYTES)

    def keep(self, job: str, run: str, folder: Path, of: Mapping[str, str], epochs: int) -> int:
        """Keep the checkpoint that lies in a folder, of when so many epochs were done.

        `of` is what it is of: the hashes of the folds and of the initial model. Answers its step.
        """
        step = int(json.loads((folder / MANIFEST).read_bytes())["step"])
        blobs: dict[str, Any] = {}
        record: dict[str, Any] = {
            **{"job": job, "run": run, "step": step, "epochs": epochs, "purpose": "weights"},
            **of,
        }
        for part in PARTS:
            with (folder / part).open("rb") as file:
                record[_key(part)] = file_digest(file, "sha256").hexdigest()
                file.seek(0)
                blobs[_key(part)] = self._blobs.upload_from_stream(f"{job}/{step}/{part}", file)
        record["created_at"] = server_now_ms(self._database)
        key, signature = self._keyring.sign(record, "weights")
        document = {"record": record, "blobs": blobs, "key": key, "signature": signature}
        before = self._records.find_one_and_replace(
            {"_id": f"{job}/{step}"}, document, upsert=True, return_document=False
        )
        if before is not None:
            self._drop_blobs(before)
        for older in self._of_job(job)[KEPT:]:
            self._drop(older)
        return step

    def fetch(self, job: str, of: Mapping[str, str], folder: Path) -> Found | None:
        """Put the newest whole checkpoint of a job into a folder; None if it has none.

        Raises OtherFit, with both hashes, if it is of other data or of another model.
        """
        for document in self._of_job(job):
            try:
                record = self._verified(document)
                _check_same(record, of)
                self._download(document, record, folder)
                return Found(record["step"], record["epochs"], record["run"], folder)
            except (ArtifactRejected, GridFSError, KeyError, TypeError, ValueError) as error:
                logger.warning("checkpoint %s is damaged, passed over: %s", document["_id"], error)
        return None

    def forget(self, job: str) -> None:
        """Remove the checkpoints of a job."""
        for document in self._of_job(job):
            self._drop(document)

    def collect(self, min_age_hours: float = 24) -> int:
        """Remove what is older and belongs to no checkpoint, or to a job that is over.

        Answers how many files were removed.
        """
        before = server_now_ms(self._database) - int(min_age_hours * _HOUR_MS)
        active = {"state": {"$in": ["queued", "running"]}}
        jobs = {job["_id"] for job in self._database["superduper.jobs"].find(active, {"_id": 1})}
        for document in self._records.find({"record.created_at": {"$lt": before}}):
            if document["record"]["job"] not in jobs:
                self._drop(document)
        moment = datetime.datetime.fromtimestamp(before / 1000, datetime.UTC)
        removed = 0
        for file in self._files.find({"uploadDate": {"$lt": moment}}, {"_id": 1}):
            named = {"$or": [{f"blobs.{_key(part)}": file["_id"]} for part in PARTS]}
            if self._records.find_one(named, {"_id": 1}) is None:
                self._blobs.delete(file["_id"])
                removed += 1
        chunks = self._database[f"{NAME}.chunks"]
        return removed + garbage.remove_torn(self._files, chunks, moment)

    def _of_job(self, job: str) -> list[dict[str, Any]]:
        """The records of a job, newest first."""
        return list(self._records.find({"record.job": job}).sort("record.step", -1))

    def _verified(self, document: Mapping[str, Any]) -> dict[str, Any]:
        record: dict[str, Any] = document["record"]
        keys = self._keyring.public_keys()
        verify(record, document["key"], document["signature"], keys, "weights")
        return record

    def _download(
        self, document: Mapping[str, Any], record: Mapping[str, Any], folder: Path
    ) -> None:
        target = folder / f"{PREFIX}{record['step']}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        hashes = {part: record[_key(part)] for part in PARTS}
        for part, digest in hashes.items():
            with (target / part).open("w+b") as file:
                self._blobs.download_to_stream(document["blobs"][_key(part)], file)
                file.seek(0)
                if file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(f"{part} is not what was written")
        (target / MANIFEST).write_bytes(manifest(record["step"], hashes))

    def _drop(self, document: Mapping[str, Any]) -> None:
        """Remove a checkpoint, its record first: a file without a record does no harm."""
        self._records.delete_one({"_id": document["_id"]})
        self._drop_blobs(document)

    def _drop_blobs(self, document: Mapping[str, Any]) -> None:
        for blob in (document.get("blobs") or {}).values():
            with contextlib.suppress(NoFile):
                self._blobs.delete(blob)


def _key(part: str) -> str:
    """A part's name as a field has it, without a dot."""
    return part.partition(".")[0]


def _check_same(record: Mapping[str, Any], of: Mapping[str, str]) -> None:
    for what, now in of.items():
        before = record[what]
        if before != now:
            described = "another model" if what == "model" else f"other {what} data"
            raise OtherFit(
                f"the checkpoint of step {record['step']} is of {described}: its hash was {before},"
                f" is {now} now; the training begins anew"
            )
