"""Sealed objects and weights in the database: a blob in GridFS, then a signed record of it.

The record is the commit point: what it names is complete. A crash leaves at most a blob that no
record names, which `collect_garbage` removes after a day.
"""

import datetime
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import bson
from gridfs import GridFSBucket, NoFile
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from superduper.errors import ArtifactRejected, NotFound
from superduper.fields.sealing import Sealed
from superduper.store.mongo import server_now_ms
from superduper.store.signing import Keyring, Purpose, canonical
from superduper.store.unsealing import check

NAME = "superduper.artifacts"
SCHEMA = 1


@dataclass(frozen=True)
class Artifact:
    """A verified blob with its signed record."""

    record: Mapping[str, Any]
    key: str
    signature: bytes
    blob: bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain BSON values."""
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
        self._blobs = GridFSBucket(database, bucket_name=NAME)

    def put_code(
        self, sealed: Sealed, *, collection: str, kind: str, name: str, author: str
    ) -> str:
        """Keep a sealed object; answers the artifact's id. The same content is kept once."""
        versions = {
            "format": sealed.format,
            "python_tag": sealed.python_tag,
            "magic": sealed.magic,
            "dill_version": sealed.dill_version,
            "torch_version": sealed.torch_version,
        }
        blob = bson.encode(sealed.to_dict())
        return self._put(blob, "code", collection, kind, name, author, versions)

    def put_weights(self, blob: bytes, *, collection: str, name: str, author: str) -> str:
        """Keep a model's weights, a safetensors file; answers the artifact's id."""
        versions = {
            "format": "safetensors",
            "python_tag": str(sys.implementation.cache_tag),
            "magic": importlib.util.MAGIC_NUMBER.hex(),
            "dill_version": None,
            "torch_version": None,
        }
        return self._put(blob, "weights", collection, "model", name, author, versions)

    def _put(
        self,
        blob: bytes,
        purpose: Purpose,
        collection: str,
        kind: str,
        name: str,
        author: str,
        versions: Mapping[str, Any],
    ) -> str:
        identity = {
            "schema": SCHEMA,
            "purpose": purpose,
            "collection": collection,
            "kind": kind,
            "name": name,
            "sha256": sha256(blob).hexdigest(),
            "size": len(blob),
        }
        artifact_id = sha256(canonical(identity)).hexdigest()
        if self._records.find_one({"_id": artifact_id}, {"_id": 1}) is not None:
            return artifact_id
        now = server_now_ms(self._database)
        record = {**identity, **versions, "created_by": author, "created_at": now}
        key, signature = self.keyring.sign(record, purpose)
        blob_id = self._upload(blob, identity["sha256"])
        document = {
            "_id": artifact_id,
            "purpose": purpose,
            "blob": blob_id,
            "record": record,
            "key": key,
            "signature": signature,
        }
        try:
            self._records.insert_one(document)
        except DuplicateKeyError:  # somebody else kept the same at the same moment
            self._blobs.delete(blob_id)
        return artifact_id

    def _upload(self, blob: bytes, digest: str) -> Any:
        upload = self._blobs.open_upload_stream(digest)
        try:
            upload.write(blob)
            upload.close()
        except BaseException:
            upload.abort()
            raise
        return upload._id

    def fetch(self, artifact_id: str) -> Artifact:
        """An artifact, its signature, hash and size verified; nothing is unpickled.

        Raises NotFound, or ArtifactRejected that says what does not match.
        """
        document = self._records.find_one({"_id": artifact_id})
        if document is None:
            raise NotFound(f"there is no artifact {artifact_id[:16]}…")
        try:
            with self._blobs.open_download_stream(document["blob"]) as download:
                blob = download.read(document["record"]["size"] + 1)
        except NoFile as error:
            raise ArtifactRejected(f"the bytes of artifact {artifact_id[:16]}… are gone") from error
        signed = {**document, "blob": blob}
        check(signed, self.keyring.public_keys(), document["purpose"])
        return Artifact(document["record"], document["key"], bytes(document["signature"]), blob)

    def collect_garbage(self, min_age_hours: float = 24) -> int:
        """Remove blobs that no record names and that are older than a day; answers how many."""
        hello = self._database.command("hello")
        before = hello["localTime"] - datetime.timedelta(hours=min_age_hours)
        removed = 0
        for file in self._blobs.find({"uploadDate": {"$lt": before}}):
            if self._records.find_one({"blob": file._id}, {"_id": 1}) is None:
                self._blobs.delete(file._id)
                removed += 1
        return removed
