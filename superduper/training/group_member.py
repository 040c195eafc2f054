"""A process that helps with a training: `python -m superduper.training.group_member FOLDER RANK
SIZE DEVICE`, started by `superduper.training.group`."""

import os
import signal
import sys
import threading
from pathlib import Path

import torch
from torch import distributed

from superduper.store.unsealing import load_own
from superduper.training.group import READY, WORK, failed, joined


def _end_with_the_leader() -> None:
    """Nobody writes to standard input: when it ends, the leader is gone."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main(folder: Path, rank: int, size: int, kind: str) -> None:
    """Join the group and do what it was started for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the leader to act on
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    try:
        help, arguments = load_own((folder / WORK).read_bytes())
        (folder / f"{READY}{rank}").touch()
        # Of several GPUs this process sees its own alone.
        help(joined(rank, size, torch.device(kind), folder), *arguments)
        distributed.destroy_process_group()
    except BaseException as error:
        failed(folder, rank, error)
        os._exit(1)  # at once: torch may wait for the others in its own clearing up


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
