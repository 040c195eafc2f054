"""Killed at random steps with everything at once, through both doors."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import both_doors
import pytest
from both_doors import DOORS, N_EPOCHS, N_STEPS

from superduper.errors import InUse
from tests.waiting import until


@pytest.mark.parametrize("door", DOORS)
def test_killed_at_random_steps_it_ends_as_one_that_was_never_stopped(
    door: str, tmp_path: Path
) -> None:
    straight = DOORS[door](tmp_path / "straight")
    assert len(straight[1]) == N_EPOCHS and straight == DOORS[door](tmp_path / "again")
    steps = random.sample(range(1, N_EPOCHS * N_STEPS + 1), 6)
    program = [sys.executable, both_doors.__file__, door, str(tmp_path), *map(str, steps)]
    subprocess.run(program, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for step in steps:
        assert goes_on(door, tmp_path / str(step)) == straight, f"killed at step {step}"


def goes_on(door: str, folder: Path) -> Any:
    """What the run comes to; its loader's worker outlives a killed one, and holds the folder."""

    def attempt() -> Any:
        try:
            return DOORS[door](folder)
        except InUse:
            return None

    return until(attempt, 60, "the folder to be let go")
