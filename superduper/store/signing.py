"""Signatures over records: who may have code run, checked before anything of it is unpickled.

A key is a pair of files in `$SUPERDUPER_HOME/keys`: `<id>.key` (private, mode 0600) and `<id>.pub`.
A worker that must not sign code holds only public ones. Ed25519 (RFC 8032), over a canonical JSON
text of the record.
"""

import base64
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from superduper import settings
from superduper.errors import ArtifactRejected, MissingExtra, NotAllowed

Purpose = Literal["code", "weights"]
PublicKeys = Mapping[str, Mapping[str, Any]]
ACCEPTED: dict[str, tuple[str, ...]] = {"code": ("code",), "weights": ("code", "weights")}


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra.of("torch", "signing and verifying registered objects") from error
    return ed25519


def canonical(record: Mapping[str, Any]) -> bytes:
    """The bytes that are signed: the same for equal records, whatever the order of their keys."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")


@dataclass(frozen=True)
class _Key:
    id: str
    purpose: str
    public: bytes
    private: Any = None


class Keyring:
    """The keys of one home."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open(cls, home: Path | None = None) -> "Keyring":
        """The keyring of `$SUPERDUPER_HOME`, or of another folder."""
        folder = (home or settings.home()) / "keys"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(folder)

    def sign(self, record: Mapping[str, Any], purpose: Purpose) -> tuple[str, bytes]:
        """The id of the key and the signature; the first use of an empty home makes a code key.

        Raises NotAllowed if this home has only public keys and code is to be signed.
        """
        key = self._signer(purpose)
        return key.id, key.private.sign(canonical(record))

    def public_keys(self) -> dict[str, dict[str, Any]]:
        """Every key that this home trusts, by id: `purpose` and the 32 bytes of `key`."""
        keys = (self._read_public(path) for path in sorted(self._folder.glob("*.pub")))
        return {key.id: {"purpose": key.purpose, "key": key.public} for key in keys}

    def create(self, purpose: Purpose) -> str:
        """Make a key pair; answers its id."""
        private = _ed25519().Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        key_id = sha256(public).hexdigest()[:16]
        body = {"id": key_id, "purpose": purpose}
        # The public half first: a key that signs must be one that is trusted.
        self._write(key_id, "pub", {**body, "public": _text(public)}, 0o644)
        self._write(key_id, "key", {**body, "private": _text(private.private_bytes_raw())}, 0o600)
        return key_id

    def _signer(self, purpose: Purpose) -> _Key:
        for path in sorted(self._folder.glob("*.key"), key=lambda path: path.stat().st_mtime):
            key = self._read_private(path)
            if key.purpose in ACCEPTED[purpose]:
                return key
        if purpose == "code" and any(self._folder.glob("*.pub")):
            raise NotAllowed(
                f"no key for signing code in {self._folder}: this machine may only check "
                "signatures; register where the private key is, or run `superduper key create`"
            )
        # Not in two steps: of two processes that start at once each makes a key, both are trusted.
        self.create(purpose)
        return self._signer(purpose)

    def _write(self, key_id: str, suffix: str, body: Mapping[str, str], mode: int) -> None:
        path = self._folder / f"{key_id}.{suffix}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "w") as file:
            json.dump(body, file)

    def _read_public(self, path: Path) -> _Key:
        body = json.loads(path.read_text())
        return _Key(body["id"], body["purpose"], base64.b64decode(body["public"]))

    def _read_private(self, path: Path) -> _Key:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise NotAllowed(
                f"the private key {path} can be read by others: chmod 600 it, or make a new one"
            )
        body = json.loads(path.read_text())
        private = _ed25519().Ed25519PrivateKey.from_private_bytes(base64.b64decode(body["private"]))
        public = private.public_key().public_bytes_raw()
        return _Key(body["id"], body["purpose"], public, private)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def verify(
    record: Mapping[str, Any],
    key_id: str,
    signature: bytes,
    public_keys: PublicKeys,
    purpose: Purpose,
) -> None:
    """Check a record's signature.

    Raises ArtifactRejected for an unknown key, a key for another purpose, or a wrong signature.
    """
    from cryptography.exceptions import InvalidSignature

    what = f"{record.get('kind')} {record.get('name')!r}"
    key = public_keys.get(key_id)
    if key is None:
        raise ArtifactRejected(
            f"{what} is signed with the key {str(key_id)[:16]!r}, which this machine does not "
            "trust: copy its .pub file into $SUPERDUPER_HOME/keys if you do"
        )
    if key["purpose"] not in ACCEPTED[purpose] or record.get("purpose") != purpose:
        raise ArtifactRejected(f"{what} is signed with a key that is not for {purpose}")
    try:
        _ed25519().Ed25519PublicKey.from_public_bytes(bytes(key["key"])).verify(
            bytes(signature), canonical(record)
        )
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ArtifactRejected(
            f"{what}: the signature is not of this record: it was changed after it was sealed"
        ) from error
