"""Sealed objects and weights in the database: a blob in GridFS, then a signed record of it.

The record is the commit point: what it names is complete. A crash leaves at most a blob that no
record names, which `superduper.store.garbage` removes later. The same bytes are kept once.
"""

import importlib.util
import json
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import bson
from bson.objectid import ObjectId
from gridfs import GridFSBucket
from gridfs.errors import GridFSError
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from superduper.errors import ArtifactRejected, InvalidInput, NotFound, TooLarge
from superduper.fields.sealing import Sealed
from superduper.store import garbage
from superduper.store.mongo import database_errors, server_now_ms
from superduper.store.records import ARTIFACT, artifact_id, verify_artifact_record
from superduper.store.signing import Keyring, Purpose

NAME = "superduper.artifacts"
CHUNK_BYTES = 1 << 20
MAX_BYTES = 2**31 - 2**26
"""What one message to a child process can carry, with room for what is around it."""
MAX_HEADER_BYTES = 100 << 20
MAX_TENSORS = 100_000
# What the driver raises where a file's description or pieces are not what it once wrote.
_DAMAGED = (GridFSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Artifact:
    """A blob with its signed record."""

    id: str
    record: Mapping[str, Any]
    key: str
    signature: bytes
    blob: bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain BSON values, for `superduper.store.unsealing.load`."""
        return {
            "record": dict(self.record),
            "key": self.key,
            "signature": self.signature,
            "blob": self.blob,
        }


class ArtifactStore:
    """The artifacts of one database."""

    def __init__(self, database: Database[Any], keyring: Keyring) -> None:
        self.keyring = keyring
        self._database = database
        self._records = database[NAME]
        self._files = database[f"{NAME}.files"]
        self._blobs = GridFSBucket(database, bucket_name=NAME, chunk_size_bytes=CHUNK_BYTES)

    # Making ----------------------------------------------------------------------------------

    def sign_code(
        self, sealed: Sealed, *, collection: str, kind: str, name: str, author: str
    ) -> Artifact:
        """The artifact of a sealed object, signed but not kept yet.

        Raises TooLarge above what a child process can be sent.
        """
        versions = {
            "format": sealed.format,
            "python_tag": sealed.python_tag,
            "magic": sealed.magic,
            "dill_version": sealed.dill_version,
            "torch_version": sealed.torch_version,
        }
        size = len(sealed.code) + len(sealed.tensors or b"") + len(sealed.portable or b"")
        _check_size(size, f"{kind} {name!r}")
        place = {"collection": collection, "kind": kind, "name": name}
        return self._sign(bson.encode(sealed.to_dict()), "code", place, versions, author)

    def sign_weights(self, blob: bytes, *, collection: str, name: str, author: str) -> Artifact:
        """The artifact of a model's weights, signed but not kept yet.

        Raises InvalidInput for bytes that are not a safetensors file.
        """
        _check_size(len(blob), f"the weights of model {name!r}")
        check_safetensors(blob)
        versions = {
            "format": "safetensors",
            "python_tag": str(sys.implementation.cache_tag),
            "magic": importlib.util.MAGIC_NUMBER.hex(),
            "dill_version": None,
            "torch_version": None,
        }
        place = {"collection": collection, "kind": "model", "name": name}
        return self._sign(blob, "weights", place, versions, author)

    def _sign(
        self,
        blob: bytes,
        purpose: Purpose,
        place: Mapping[str, str],
        versions: Mapping[str, str | None],
        author: str,
    ) -> Artifact:
        record = {
            "schema": ARTIFACT,
            "purpose": purpose,
            **place,
            "sha256": sha256(blob).hexdigest(),
            "size": len(blob),
            **versions,
            "created_by": author,
            "created_at": server_now_ms(self._database),
        }
        key, signature = self.keyring.sign(record, purpose)
        return Artifact(artifact_id(record), record, key, signature, blob)

    # Keeping ---------------------------------------------------------------------------------

    def put_code(
        self, sealed: Sealed, *, collection: str, kind: str, name: str, author: str
    ) -> str:
        """Sign and keep a sealed object; answers the artifact's id."""
        return self.keep(
            self.sign_code(sealed, collection=collection, kind=kind, name=name, author=author)
        )

    def put_weights(self, blob: bytes, *, collection: str, name: str, author: str) -> str:
        """Sign and keep a model's weights, a safetensors file; answers the artifact's id."""
        return self.keep(self.sign_weights(blob, collection=collection, name=name, author=author))

    def keep(self, artifact: Artifact) -> str:
        """Keep an artifact: its blob, checked, and then its record. Nothing if it is there.

        Call it again after something refers to the artifact: what garbage collection may have taken
        in between is put back.
        """
        with database_errors():
            kept = garbage.spare(self._records, {"_id": artifact.id})
            if kept is None:
                self._insert(artifact)
            elif not self._is_trusted(kept, artifact.record["purpose"]):
                self.mend(artifact)
            self._see_to_blob(artifact)
        return artifact.id

    def _is_trusted(self, kept: Mapping[str, Any], purpose: Purpose) -> bool:
        """Whether what is kept is signed, and with a key that has not been revoked since."""
        try:
            record = verify_artifact_record(kept, self.keyring.public_keys(), purpose)
        except ArtifactRejected:
            return False
        return bool(artifact_id(record) == kept["_id"])

    def mend(self, artifact: Artifact) -> None:
        """Keep an artifact in the place of what is kept: that is damaged, or not trusted here."""
        with database_errors():
            document = _document(artifact, self._upload(artifact.blob, artifact.record["sha256"]))
            self._records.replace_one({"_id": artifact.id}, document, upsert=True)

    def _insert(self, artifact: Artifact) -> None:
        digest = artifact.record["sha256"]
        blob = self._find_blob(digest) or self._upload(artifact.blob, digest)
        try:
            self._records.insert_one(_document(artifact, blob))
        except DuplicateKeyError:  # somebody else kept the same at the same moment
            return

    def _see_to_blob(self, artifact: Artifact) -> None:
        """See that the blob of a kept record is there, and stays."""
        document = self._records.find_one({"_id": artifact.id})
        if document is None:  # deleted at this very moment
            raise NotFound(f"artifact {artifact.id[:16]} was deleted while it was registered")
        if garbage.spare(self._files, {"_id": document["blob"]}) is None:
            blob = self._upload(artifact.blob, artifact.record["sha256"])
            self._records.update_one(
                {"_id": artifact.id, "blob": document["blob"]}, {"$set": {"blob": blob}}
            )

    def _find_blob(self, digest: str) -> Any:
        found = self._files.find_one({"filename": digest, garbage.MARK: None}, {"_id": 1})
        if found is None or not self._holds(found["_id"], digest):
            return None
        return found["_id"]

    def _holds(self, blob_id: Any, digest: str) -> bool:
        try:
            return sha256(self._download(blob_id)).hexdigest() == digest
        except _DAMAGED:
            return False

    def _upload(self, blob: bytes, digest: str) -> ObjectId:
        upload = self._blobs.open_upload_stream(digest)
        try:
            upload.write(blob)
            upload.close()
        except BaseException:
            upload.abort()  # closing alone would leave the chunks behind
            raise
        blob_id = ObjectId(str(upload._id))
        if not self._holds(blob_id, digest):
            self._blobs.delete(blob_id)
            raise ArtifactRejected("the database did not keep what was written: register it again")
        return blob_id

    # Reading ---------------------------------------------------------------------------------

    def fetch(self, artifact_id: str) -> Artifact:
        """An artifact; signature, hash and size are verified, and nothing is unpickled.

        Raises NotFound, or ArtifactRejected that says what does not match.
        """
        with database_errors():
            document = self._records.find_one({"_id": artifact_id})
        if document is None:
            raise NotFound(f"there is no artifact {str(artifact_id)[:16]}: register it again")
        purpose: Purpose = "weights" if document.get("purpose") == "weights" else "code"
        record = verify_artifact_record(document, self.keyring.public_keys(), purpose)
        what = f"{record['kind']} {record['name']!r}"
        with database_errors():
            blob = self._blob_of(document, record["size"], what)
        if sha256(blob).hexdigest() != record["sha256"] or len(blob) != record["size"]:
            raise ArtifactRejected(f"{what}: the stored bytes are not those that were signed")
        signature = bytes(document["signature"])
        return Artifact(str(artifact_id), record, document["key"], signature, blob)

    def _blob_of(self, document: Mapping[str, Any], size: int, what: str) -> bytes:
        blob_id = document.get("blob")
        file = self._files.find_one({"_id": blob_id}) if isinstance(blob_id, ObjectId) else None
        if file is None:
            raise ArtifactRejected(f"{what}: its stored bytes are gone: register it again")
        if file.get("length") != size:  # before reading: it may be anything
            raise ArtifactRejected(
                f"{what}: {file.get('length')} bytes are stored, {size} were signed"
            )
        try:
            return self._download(file["_id"])
        except _DAMAGED as error:
            raise ArtifactRejected(
                f"{what}: its stored bytes are damaged: {error}: register it again"
            ) from error

    def _download(self, blob_id: Any) -> bytes:
        with self._blobs.open_download_stream(blob_id) as stream:
            return bytes(stream.read())

    def collect_garbage(self, min_age_hours: float = 24) -> int:
        """Remove what nothing refers to and is older than that; answers how many blobs went."""
        with database_errors():
            return garbage.collect(self._database, NAME, min_age_hours)


def _document(artifact: Artifact, blob: ObjectId) -> dict[str, Any]:
    return {
        "_id": artifact.id,
        "purpose": artifact.record["purpose"],
        "blob": blob,
        "record": dict(artifact.record),
        "key": artifact.key,
        "signature": artifact.signature,
    }


def _check_size(size: int, what: str) -> None:
    if size > MAX_BYTES:
        raise TooLarge(f"{what} takes {size >> 20} MiB: at most {MAX_BYTES >> 20} can be kept")


def check_safetensors(blob: bytes) -> None:
    """Raise InvalidInput unless bytes have the form of a safetensors file.

    A fit's weights come from a process that runs user code; nothing else may be signed as weights.
    """
    wrong = "the weights are not a safetensors file"
    (length,) = struct.unpack("<Q", blob[:8]) if len(blob) >= 8 else (2**63,)
    if length > min(MAX_HEADER_BYTES, len(blob) - 8):
        raise InvalidInput(wrong)
    try:
        header = json.loads(blob[8 : 8 + length])
    except ValueError as error:
        raise InvalidInput(wrong) from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise InvalidInput(wrong)
