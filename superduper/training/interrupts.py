"""Ctrl-C during training: the step is finished and saved before the program ends."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superduper.training.checkpoints import Checkpoints
from superduper.training.policies import Policy

if TYPE_CHECKING:
    from superduper.training.engine import Engine


class SaveOnInterrupt(Policy):
    """Saves a checkpoint at the first Ctrl-C and raises KeyboardInterrupt; a second acts at once.

    It must be the last policy of a run, so that what it saves is whole.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._asked = False

    def step_finished(self, engine: "Engine", step: int) -> None:
        """Save and raise, if it was asked for."""
        if self._asked:
            self._leave(
                f"stopped after step {step}", self.checkpoints.save(step, engine.state_dict())
            )

    def epoch_finished(self, engine: "Engine", epoch: int, step: int) -> None:
        """Save and raise, if it was asked for during validation."""
        if self._asked:
            self._leave(
                f"stopped after epoch {epoch}", self.checkpoints.save(step, engine.state_dict())
            )

    def _leave(self, what: str, saved: Path) -> None:
        self._asked = False
        raise KeyboardInterrupt(f"{what}, saved in {saved}; train again to go on")

    def __enter__(self) -> "SaveOnInterrupt":
        self._asked = False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self._asked:
            raise KeyboardInterrupt("the training had ended before it could be stopped")

    def _ask(self, *_: object) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._before)
