"""Disks of the embedded stores that this program uses: the usual reason why one fails."""

import shutil
from pathlib import Path

SCARCE_BYTES = 64 * 2**20

_folders: list[Path] = []


def watch(folder: Path) -> None:
    """Name this folder's disk in errors if it is full."""
    _folders.append(folder)


def forget(folder: Path) -> None:
    """The store in this folder is not used any more."""
    _folders.remove(folder)


def complaint() -> str | None:
    """Which disk is full and what to do; None if all have space."""
    return next(filter(None, map(complaint_of, _folders)), None)


def complaint_of(folder: Path) -> str | None:
    """What to do about a folder's disk; None if it has space."""
    free = shutil.disk_usage(folder).free
    if free >= SCARCE_BYTES:
        return None
    left = f"{free // 2**20} MiB left"
    return f"the disk of the store at {folder} is full ({left}): free some space, try again"
