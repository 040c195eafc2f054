"""The rounds of `steps`: every loop trains the same model on the same data, by turns."""

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.training import loops_of_others, loops_of_ours
from benchmarks.training.task import EPOCHS, Clock, Task

BARE = "bare loop, DataLoader"
FRAMEWORKS = ("accelerate", "pytorch-ignite", "pytorch-lightning", "skorch")
WARM_STEPS = 200


def main() -> None:
    """Run the rounds and write the medians into a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    steps, rounds = (300, 2) if options.small else (1_000, 7)
    loops = {**loops_of_others.LOOPS, **loops_of_ours.LOOPS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    losses = {}
    for turn in range(rounds):
        # Each round begins with another, so that none always follows the same one.
        names = [*loops][turn % len(loops) :] + [*loops][: turn % len(loops)]
        for name in names:
            times[name].append(_timed(loops[name], steps, losses, name))
    options.result.write_text(json.dumps(_summary(times, losses, steps)))


def _timed(loop: Any, steps: int, losses: dict[str, float], name: str) -> tuple[float, float]:
    """Microseconds per step of a loop: CPU time and wall time."""
    clock = Clock(WARM_STEPS, EPOCHS * steps)
    with tempfile.TemporaryDirectory(prefix="superduper-bench-") as folder:
        task = Task(steps, clock, Path(folder))
        loop(task)
        losses[name] = task.final_loss()
    return clock.microseconds()


def _summary(
    times: dict[str, list[tuple[float, float]]], losses: dict[str, float], steps: int
) -> dict[str, Any]:
    ratios = {
        name: statistics.median(
            mine[0] / bare[0] for mine, bare in zip(each, times[BARE], strict=True)
        )
        for name, each in times.items()
    }
    cpu = {name: statistics.median(cpu for cpu, _ in each) for name, each in times.items()}
    wall = {name: statistics.median(wall for _, wall in each) for name, each in times.items()}
    return {
        "steps": EPOCHS * steps,
        "rounds": len(times[BARE]),
        "cpu_microseconds_per_step": {name: round(value, 1) for name, value in cpu.items()},
        "wall_microseconds_per_step": {name: round(value, 1) for name, value in wall.items()},
        "cpu_ratio_to_the_bare_loop": {name: round(value, 3) for name, value in ratios.items()},
        "loss_at_the_end": {name: round(value, 4) for name, value in losses.items()},
        "versions": {
            "torch": torch.__version__,
            **{name: importlib.metadata.version(name) for name in FRAMEWORKS},
        },
        "load_average": os.getloadavg()[0],
        "measured_at": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
