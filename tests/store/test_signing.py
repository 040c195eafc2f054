"""Keys: made once, kept private, trusted by file; signatures: of this record, by a fitting key."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from superduper.errors import ArtifactRejected, NotAllowed
from superduper.store.signing import Keyring, canonical, verify

RECORD = {"purpose": "code", "kind": "model", "name": "m", "size": 3, "torch_version": None}
WEIGHTS = {**RECORD, "purpose": "weights"}


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.open(tmp_path)


def keys(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted((folder / "keys").glob(pattern))


def test_the_first_use_makes_one_code_key(tmp_path: Path, keyring: Keyring) -> None:
    assert keyring.public_keys() == {}, "looking makes none"
    key, signature = keyring.sign(RECORD, "code")
    assert keyring.sign(WEIGHTS, "weights")[0] == key, "a code key may sign weights"
    assert Keyring.open(tmp_path).sign(RECORD, "code") == (key, signature)
    [private] = keys(tmp_path, "*.key")
    assert private.stem == key and private.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    verify(RECORD, key, signature, keyring.public_keys(), "code")
    verify(dict(reversed(RECORD.items())), key, signature, keyring.public_keys(), "code")


SIGN = """
from superduper.store.signing import Keyring
print(Keyring.open().sign({}, "code")[0])
"""


def test_processes_that_start_at_once_make_one_key(tmp_path: Path) -> None:
    environment = {**os.environ, "SUPERDUPER_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", SIGN], env=environment, stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    assert len({process.communicate()[0] for process in started}) == 1
    assert [path.suffix for path in keys(tmp_path)] == [".key", ".pub"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_private_key_that_others_can_read_is_refused(
    tmp_path: Path, keyring: Keyring, mode: int
) -> None:
    keyring.sign(RECORD, "code")
    [private] = keys(tmp_path, "*.key")
    private.chmod(mode)
    with pytest.raises(NotAllowed, match=f"{private} can be read by others: chmod 600"):
        keyring.sign(RECORD, "code")


def test_a_folder_or_public_key_that_others_can_write_is_refused(
    tmp_path: Path, keyring: Keyring
) -> None:
    keyring.sign(RECORD, "code")
    [public] = keys(tmp_path, "*.pub")
    public.chmod(0o664)
    with pytest.raises(NotAllowed, match="can be changed by others: chmod 644"):
        keyring.public_keys()
    public.chmod(0o644)
    (tmp_path / "keys").chmod(0o777)
    with pytest.raises(NotAllowed, match="others may write to .*keys.*: chmod 700"):
        keyring.public_keys()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"purpose": "code", "public": "AAAA"}', "\0"])
def test_a_damaged_key_is_named(tmp_path: Path, keyring: Keyring, text: str) -> None:
    keyring.sign(RECORD, "code")
    [public] = keys(tmp_path, "*.pub")
    public.write_text(text)
    with pytest.raises(NotAllowed, match=f"{public} is not a key file"):
        keyring.public_keys()


def test_a_public_key_under_another_name_is_refused(tmp_path: Path, keyring: Keyring) -> None:
    keyring.sign(RECORD, "code")
    [public] = keys(tmp_path, "*.pub")
    public.rename(public.with_stem("0" * 16))
    with pytest.raises(NotAllowed, match="does not hold the key of its name"):
        keyring.public_keys()


# A worker elsewhere ---------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path: Path, keyring: Keyring) -> Keyring:
    """A worker that holds the public key of the machine where people register."""
    keyring.sign(RECORD, "code")
    worker = Keyring.open(tmp_path / "worker")
    for path in keys(tmp_path, "*.pub"):
        (tmp_path / "worker" / "keys" / path.name).write_bytes(path.read_bytes())
    return worker


def test_public_keys_alone_verify_and_sign_nothing(keyring: Keyring, worker: Keyring) -> None:
    key, signature = keyring.sign(RECORD, "code")
    verify(RECORD, key, signature, worker.public_keys(), "code")
    with pytest.raises(NotAllowed, match="may not sign code: .*Register from a machine that has"):
        worker.sign(RECORD, "code")
    with pytest.raises(NotAllowed, match="superduper key create --purpose weights"):
        worker.sign(WEIGHTS, "weights")


def test_a_key_for_weights_is_for_weights_only(keyring: Keyring, worker: Keyring) -> None:
    made = worker.create("weights")
    key, signature = worker.sign(WEIGHTS, "weights")
    assert key == made
    verify(WEIGHTS, key, signature, worker.public_keys(), "weights")
    with pytest.raises(NotAllowed, match="may not sign code"):
        worker.sign(RECORD, "code")
    with pytest.raises(ArtifactRejected, match="does not trust: .*copy that key's .pub file"):
        verify(WEIGHTS, key, signature, keyring.public_keys(), "weights")
    _, forged = worker.sign(RECORD, "weights")
    with pytest.raises(ArtifactRejected, match="a key that is not for code"):
        verify(RECORD, key, forged, worker.public_keys(), "code")
    with pytest.raises(ArtifactRejected, match="a key that is not for weights"):
        verify(RECORD, key, forged, worker.public_keys(), "weights")


def test_both_keys_in_one_home_sign_what_they_are_for(keyring: Keyring) -> None:
    code, weights = keyring.create("code"), keyring.create("weights")
    assert keyring.sign(RECORD, "code")[0] == code
    assert keyring.sign(WEIGHTS, "weights")[0] == weights


# Records --------------------------------------------------------------------------------------


def test_any_change_of_a_record_is_noticed(keyring: Keyring) -> None:
    key, signature = keyring.sign(RECORD, "code")
    trusted = keyring.public_keys()
    changed: list[dict[str, Any]] = [
        {**RECORD, "size": 4},
        {**RECORD, "name": "n"},
        {**RECORD, "torch_version": "2"},
        {**RECORD, "more": 1},
        {name: value for name, value in RECORD.items() if name != "kind"},
        {**RECORD, "size": "3"},
        {**RECORD, "size": 3.0},
        {**RECORD, "name": {"$gt": ""}},
    ]
    for record in changed:
        with pytest.raises(ArtifactRejected, match="it was changed after it was sealed"):
            verify(record, key, signature, trusted, "code")
    for wrong in (b"", signature[:-1], signature + b"x", bytes(64)):
        with pytest.raises(ArtifactRejected):
            verify(RECORD, key, wrong, trusted, "code")
    with pytest.raises(ArtifactRejected, match="does not trust"):
        verify(RECORD, "0" * 16, signature, trusted, "code")


def test_only_plain_values_can_be_signed() -> None:
    assert canonical({"b": 1, "a": "é"}) == b'{"a":"\\u00e9","b":1}'
    for value in (1.5, float("nan"), b"x", [1], {"a": 1}):
        with pytest.raises(TypeError, match="a signed record cannot hold"):
            canonical({"a": value})
