"""Replace and withdraw keys: what people do to a keyring by hand, through `superduper key`.

A rotated key still proves what it signed; a revoked one proves nothing any more.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from superduper.errors import NotFound
from superduper.store.signing import Keyring, Purpose

REVOKED = "revoked"
_KEY_ID = re.compile("[0-9a-f]{16}")


def rotate(home: Path, purpose: Purpose) -> str:
    """Make a key that signs from now on; answers its id.

    The private halves of the earlier keys for this purpose are removed. Their public halves stay,
    so that what they signed can still be loaded.
    """
    keyring, folder = Keyring.open(home), home / "keys"
    with _alone(folder):
        keys = keyring.public_keys().items()
        earlier = [key_id for key_id, key in keys if key["purpose"] == purpose]
        made = keyring.create(purpose)
        for key_id in earlier:
            (folder / f"{key_id}.key").unlink(missing_ok=True)
    return made


def revoke(home: Path, key_id: str) -> Path:
    """Trust a key no more: what it signed is refused until it is registered again.

    Its files are moved to the folder that is answered. Raises NotFound for an unknown key.
    """
    folder = home / "keys"
    halves = [folder / f"{key_id}.{suffix}" for suffix in ("key", "pub")]
    if not _KEY_ID.fullmatch(key_id) or not any(path.exists() for path in halves):
        known = ", ".join(sorted(path.stem for path in folder.glob("*.pub"))) or "none"
        raise NotFound(f"there is no key {key_id[:32]!r} in {folder}; there are: {known}")
    revoked = folder / REVOKED
    with _alone(folder):
        revoked.mkdir(mode=0o700, exist_ok=True)
        for path in halves:  # the private half first: what is not trusted must not sign
            if path.exists():
                path.replace(revoked / path.name)
    return revoked


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep processes out that look for a key to sign with."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
