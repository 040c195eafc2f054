"""What a child says of where it is, and what it may do to the file that it says it in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from superduper.jobs import place
from superduper.jobs.place import NAME, Place


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[int]:
    handle = place.make(tmp_path)
    yield handle
    os.close(handle)


def test_what_was_put_last_is_read(tmp_path: Path, handle: int) -> None:
    assert place.read(handle) is None
    here = Place(tmp_path)
    here.put(0)
    assert place.read(handle) == 0
    here.put(255)
    assert place.read(handle) == 255
    here.clear()
    assert place.read(handle) is None


def test_what_a_child_does_to_its_file_harms_nobody(tmp_path: Path, handle: int) -> None:
    os.truncate(tmp_path / NAME, 3)
    assert place.read(handle) is None
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).symlink_to("/etc/passwd")
    assert place.read(handle) is None


def test_it_is_made_anew_only(tmp_path: Path, handle: int) -> None:
    with pytest.raises(FileExistsError):
        place.make(tmp_path)
