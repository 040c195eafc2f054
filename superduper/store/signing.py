"""Signatures over records: who may have code run, checked before anything of it is unpickled.

A key is a pair of files in `$SUPERDUPER_HOME/keys`: `<id>.key` (private, mode 0600) and `<id>.pub`.
Whoever holds a `.pub` file there trusts that key. A worker on another machine holds public keys
only, so that it cannot sign code; for what it trains it gets a key for weights. Ed25519 (RFC 8032),
over a canonical JSON text of the record.
"""

import base64
import binascii
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from superduper import settings
from superduper.errors import ArtifactRejected, MissingExtra, NotAllowed

Purpose = Literal["code", "weights"]
PublicKeys = Mapping[str, Mapping[str, Any]]
ACCEPTED: dict[str, tuple[str, ...]] = {"code": ("code",), "weights": ("weights", "code")}
"""Which keys may sign for a purpose, the fitting one first: code may also sign weights."""

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_MAY_ANYTHING = stat.S_IRWXG | stat.S_IRWXO


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra.of("torch", "signing and verifying registered objects") from error
    return ed25519


def canonical(record: Mapping[str, Any]) -> bytes:
    """The bytes that are signed: the same for equal records, whatever the order of their keys.

    Raises TypeError for anything but text, whole numbers and None.
    """
    for value in record.values():
        if value is not None and not isinstance(value, str | int):
            raise TypeError(f"a signed record cannot hold a {type(value).__name__}")
    text = json.dumps(dict(record), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")


@dataclass(frozen=True)
class _Key:
    id: str
    purpose: str
    public: bytes
    private: Any = None


class Keyring:
    """The keys of one home. Files are read when they are needed: a new key counts at once."""

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

        Raises NotAllowed if this home has keys, but none that may sign this.
        """
        key = self._signer(purpose)
        return key.id, key.private.sign(canonical(record))

    def public_keys(self) -> dict[str, dict[str, Any]]:
        """Every key that this home trusts, by id: `purpose` and the 32 bytes of `key`."""
        self._check_folder()
        found = {}
        for path in sorted(self._folder.glob("*.pub")):
            with suppress(FileNotFoundError):  # revoked at this very moment
                key = _read_public(path)
                found[key.id] = {"purpose": key.purpose, "key": key.public}
        return found

    def create(self, purpose: Purpose) -> str:
        """Make a key pair; answers its id."""
        private = _ed25519().Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        key_id = _id_of(public)
        body = {"id": key_id, "purpose": purpose}
        # The public half first: a key that signs must be one that is trusted.
        self._write(f"{key_id}.pub", {**body, "public": _text(public)}, 0o644)
        self._write(f"{key_id}.key", {**body, "private": _text(private.private_bytes_raw())}, 0o600)
        return key_id

    def _signer(self, purpose: Purpose) -> _Key:
        with self._alone():
            self._check_folder()
            if not any(self._folder.glob("*.pub")) and not any(self._folder.glob("*.key")):
                self.create("code")
            keys = [_read_private(path) for path in sorted(self._folder.glob("*.key"))]
        for accepted in ACCEPTED[purpose]:
            for key in keys:
                if key.purpose == accepted:
                    return key
        raise NotAllowed(
            f"this machine may not sign {purpose}: {self._folder} has no private key for it. "
            + _ADVICE[purpose]
        )

    def _check_folder(self) -> None:
        if self._folder.stat().st_mode & _OTHERS_MAY_WRITE:
            raise NotAllowed(
                f"others may write to {self._folder}, and so add keys that are trusted: "
                f"chmod 700 {self._folder}"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes out, so that two that start at once make one first key."""
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _write(self, name: str, body: Mapping[str, str], mode: int) -> None:
        """Write a file that is there whole or not at all."""
        draft = self._folder / f".{name}.{os.getpid()}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "w") as file:
            json.dump(body, file)
            file.flush()
            os.fsync(handle)
        os.rename(draft, self._folder / name)


_ADVICE = {
    "code": "Register from a machine that has one, or make one with `superduper key create` and "
    "copy its .pub file to every machine that is to trust it",
    "weights": "Make one with `superduper key create --purpose weights` and copy its .pub file to "
    "every machine that is to trust it",
}


def _id_of(public: bytes) -> str:
    return sha256(public).hexdigest()[:16]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _read_public(path: Path) -> _Key:
    if path.stat().st_mode & _OTHERS_MAY_WRITE:
        raise NotAllowed(f"the public key {path} can be changed by others: chmod 644 {path}")
    purpose, public = _read(path, "public")
    if _id_of(public) != path.stem:
        raise NotAllowed(f"{path} does not hold the key of its name: copy it again, or remove it")
    return _Key(path.stem, purpose, public)


def _read_private(path: Path) -> _Key:
    if path.stat().st_mode & _OTHERS_MAY_ANYTHING:
        raise NotAllowed(
            f"the private key {path} can be read by others: chmod 600 {path}; if others may have "
            "read it, remove it and its .pub file and make a new one"
        )
    purpose, secret = _read(path, "private")
    private = _ed25519().Ed25519PrivateKey.from_private_bytes(secret)
    public = private.public_key().public_bytes_raw()
    return _Key(_id_of(public), purpose, public, private)


def _read(path: Path, half: str) -> tuple[str, bytes]:
    try:
        body = json.loads(path.read_text())
        purpose, data = body["purpose"], base64.b64decode(body[half], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise NotAllowed(f"{path} is not a key file: copy it again, or remove it") from error
    if purpose not in ACCEPTED or len(data) != 32:
        raise NotAllowed(f"{path} is not a key file: copy it again, or remove it")
    return purpose, data


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
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    what = f"{str(record.get('kind'))[:20]} {str(record.get('name'))[:63]!r}"
    key = public_keys.get(key_id) if isinstance(key_id, str) else None
    if key is None:
        raise ArtifactRejected(
            f"{what} is signed with the key {str(key_id)[:16]!r}, which this machine does not "
            "trust: register it again, or copy that key's .pub file into $SUPERDUPER_HOME/keys"
        )
    if key["purpose"] not in ACCEPTED[purpose] or record.get("purpose") != purpose:
        raise ArtifactRejected(f"{what} is signed with a key that is not for {purpose}")
    try:
        public = ed25519.Ed25519PublicKey.from_public_bytes(bytes(key["key"]))
        public.verify(bytes(signature), canonical(record))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ArtifactRejected(
            f"{what}: the signature is not of this record: it was changed after it was sealed"
        ) from error
