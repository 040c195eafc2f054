"""The two records that are signed: of a blob, and of a version of a component that names blobs.

A version's record says which artifacts it is made of, and an artifact's record which component it
is for. Both are checked, so that neither another component's artifact nor another version's can be
put in its place by someone who can write to the database.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal

from superduper.errors import ArtifactRejected
from superduper.store.signing import PublicKeys, Purpose, canonical, verify

ARTIFACT = "superduper.artifact/1"
COMPONENT = "superduper.component/1"
_IDENTITY = ("schema", "purpose", "collection", "kind", "name", "sha256", "size")
_BELONGS = ("collection", "kind", "name")

Part = Literal["code", "weights", "domain"]
"""What a version is made of; who may sign weights may sign what their domain is as well."""

Signed = Mapping[str, Any]
"""`{record, key, signature}`, and for an artifact its `blob`."""


def artifact_id(record: Mapping[str, Any]) -> str:
    """The id of an artifact: the hash of what it is and what it is for."""
    return sha256(canonical({name: record.get(name) for name in _IDENTITY})).hexdigest()


def verify_component(signed: Signed, public_keys: PublicKeys) -> Mapping[str, Any]:
    """The record of a version, once its signature is verified.

    Raises ArtifactRejected.
    """
    record = signed.get("record")
    if not isinstance(record, Mapping) or record.get("schema") != COMPONENT:
        raise ArtifactRejected("the version of a component has no signed record: register it again")
    # Who may sign weights may publish them as a version, but not without weights.
    purpose: Purpose = "code" if record.get("weights") is None else "weights"
    _verify(signed, record, public_keys, purpose)
    return record


def verify_artifact(
    signed: Signed, public_keys: PublicKeys, part: Part, of: Mapping[str, Any]
) -> bytes:
    """The blob of an artifact, once signature, hash and size are verified, in that order.

    `of` is the verified record of the version that it must be that part of. Raises
    ArtifactRejected that says what does not match.
    """
    purpose: Purpose = "code" if part == "code" else "weights"
    record = verify_artifact_record(signed, public_keys, purpose)
    what = f"{record['kind']} {record['name']!r}"
    wanted = of["artifact"] if part == "code" else of.get(part)
    if [record[name] for name in _BELONGS] != [of[name] for name in _BELONGS]:
        raise ArtifactRejected(
            f"{of['kind']} {of['name']!r} names an artifact that was sealed for {what}"
        )
    if artifact_id(record) != wanted:
        raise ArtifactRejected(f"{what}: the artifact is not the one of version {of['version']}")
    blob = signed.get("blob")
    if not isinstance(blob, bytes) or sha256(blob).hexdigest() != record["sha256"]:
        raise ArtifactRejected(f"{what}: the stored bytes are not those that were signed")
    if len(blob) != record["size"]:
        raise ArtifactRejected(
            f"{what}: {len(blob)} bytes are stored, {record['size']} were signed"
        )
    return bytes(blob)


def verify_artifact_record(
    signed: Signed, public_keys: PublicKeys, purpose: Purpose
) -> Mapping[str, Any]:
    """The record of an artifact, once its signature is verified; its blob is not looked at.

    Raises ArtifactRejected.
    """
    record = signed.get("record")
    if not isinstance(record, Mapping) or record.get("schema") != ARTIFACT:
        raise ArtifactRejected("an artifact has no signed record: register its component again")
    _verify(signed, record, public_keys, purpose)
    return record


def _verify(
    signed: Signed, record: Mapping[str, Any], public_keys: PublicKeys, purpose: Purpose
) -> None:
    signature = signed.get("signature")
    if not isinstance(signature, bytes):
        raise ArtifactRejected(
            f"{str(record.get('kind'))[:20]} {str(record.get('name'))[:63]!r} is not signed: "
            "register it again"
        )
    verify(record, str(signed.get("key")), signature, public_keys, purpose)
