"""Keys are replaced without losing what they signed, and withdrawn with all that they signed."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from superduper.errors import ArtifactRejected, NotAllowed, NotFound
from superduper.store.rotation import revoke, rotate
from superduper.store.signing import Keyring, verify

RECORD = {"kind": "model", "name": "m", "purpose": "code", "size": 1}

SIGN = """
import pathlib, sys
from superduper.store.signing import Keyring, verify
keyring, record = Keyring.open(pathlib.Path(sys.argv[1])), {"purpose": "code"}
print("ready", flush=True)
while not pathlib.Path(sys.argv[1], "stop").exists():
    verify(record, *keyring.sign(record, "code"), keyring.public_keys(), "code")
"""


def test_a_new_key_signs_and_the_old_one_is_still_trusted(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path)
    first, signature = keyring.sign(RECORD, "code")
    made = rotate(tmp_path, "code")
    assert keyring.sign(RECORD, "code")[0] == made != first
    verify(RECORD, first, signature, keyring.public_keys(), "code")
    assert not (tmp_path / "keys" / f"{first}.key").exists()


def test_keys_for_another_purpose_are_left_alone(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path)
    code, weights = keyring.create("code"), keyring.create("weights")
    made = rotate(tmp_path, "weights")
    private = {path.stem for path in (tmp_path / "keys").glob("*.key")}
    assert private == {code, made}
    assert set(keyring.public_keys()) == {code, weights, made}


def test_an_empty_home_gets_its_first_key(tmp_path: Path) -> None:
    made = rotate(tmp_path / "new", "code")
    assert set(Keyring.open(tmp_path / "new").public_keys()) == {made}


def test_what_a_revoked_key_signed_is_refused(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path)
    first, signature = keyring.sign(RECORD, "code")
    folder = revoke(tmp_path, first)
    assert {path.name for path in folder.iterdir()} == {f"{first}.key", f"{first}.pub"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(ArtifactRejected, match="does not trust"):
        verify(RECORD, first, signature, keyring.public_keys(), "code")
    assert keyring.sign(RECORD, "code")[0] != first


def test_a_worker_that_revokes_its_only_private_key_signs_no_code(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path)
    own, trusted = keyring.create("code"), keyring.create("code")
    (tmp_path / "keys" / f"{trusted}.key").unlink()
    revoke(tmp_path, own)
    with pytest.raises(NotAllowed, match="may not sign code"):
        keyring.sign(RECORD, "code")


def test_a_revocation_that_a_crash_cut_off_is_finished(tmp_path: Path) -> None:
    key_id = Keyring.open(tmp_path).create("code")
    revoked = tmp_path / "keys" / "revoked"
    revoked.mkdir()
    (tmp_path / "keys" / f"{key_id}.key").rename(revoked / f"{key_id}.key")
    revoke(tmp_path, key_id)
    assert not Keyring.open(tmp_path).public_keys()
    with pytest.raises(NotFound, match=f"no key {key_id!r}.*there are: none"):
        revoke(tmp_path, key_id)


@pytest.mark.parametrize("key_id", ["", "../" + "0" * 13, "0" * 16, "0" * 15 + "\n", "é" * 16])
def test_an_unknown_key_is_said(tmp_path: Path, key_id: str) -> None:
    made = Keyring.open(tmp_path).create("code")
    with pytest.raises(NotFound, match=f"there are: {made}"):
        revoke(tmp_path, key_id)


def test_who_signs_meanwhile_notices_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGN, str(tmp_path)]
    others = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in others:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for _ in range(20):
        rotate(tmp_path, "code")
    (tmp_path / "stop").touch()
    for process in others:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
