"""What `create_imputation` returns: a handle on an imputation that lives in the database."""

import builtins
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from superduper import commands
from superduper.command import build
from superduper.display import Table, html_table
from superduper.errors import SuperduperError, TimedOut, error_of
from superduper.predicting import DOCUMENT_COLUMNS, Predicting, decoded

POLL_SECONDS = 0.25
LINE_SECONDS = 5.0
SETTLED = ("watching", "ready", "paused")


class Imputation(Predicting):
    """A field that is predicted from another; every property asks the database."""

    kind = "imputation"

    def _send(self, command: type[commands.OnImputation], **fields: Any) -> Any:
        return self._transport.send(
            build(command, collection=self.collection, name=self.name, **fields)
        )

    # State -----------------------------------------------------------------------------------

    def show(self) -> dict[str, Any]:
        """Everything about it: settings, status, progress, live version, last error."""
        found: dict[str, Any] = self._send(commands.ShowImputation)
        return found

    @property
    def status(self) -> str:
        """fitting, filling, watching, ready, paused or failed."""
        return str(self.show()["status"])

    @property
    def version(self) -> int | None:
        """The live version; None while there is none."""
        return self.show()["active"]  # type: ignore[no-any-return]

    def wait(self, timeout: float | None = None, progress: bool = True) -> Self:
        """Wait until it is trained and the documents that are there are filled.

        Shows a progress bar on a terminal and in a notebook, and plain lines anywhere else.
        Raises the error that ended the fit; TimedOut after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with _Bar(self.name, enabled=progress) as bar:
            while True:
                state = self.show()
                bar.update(state)
                fitting = state["fit"] is not None and state["fit"]["state"] in ACTIVE_JOB
                if not fitting:
                    if state["error"]:
                        raise _error(self.name, state["error"])
                    if state["status"] in SETTLED:
                        return self
                if deadline is not None and time.monotonic() > deadline:
                    raise TimedOut(_why_waiting(self.name, state, timeout))
                time.sleep(POLL_SECONDS)

    def versions(self) -> Table:
        """Its versions, newest first, with their metrics."""
        return Table(self._send(commands.ListVersions), VERSION_COLUMNS)

    def history(self) -> Table:
        """Which version was made live when, by whom and why; newest first."""
        return Table(self._send(commands.ShowHistory), ("at", "version", "by", "reason"))

    def counts(self) -> dict[str, int]:
        """The number of documents in each state."""
        found: dict[str, int] = self._send(commands.CountStates)
        return found

    def documents(self, state: str, page: int = 100) -> Iterator[dict[str, Any]]:
        """The documents in a state of `counts()`, with what is known of why, read page by page."""
        after = None
        while True:
            found = self._send(commands.ListStates, state=state, after=after, limit=page)
            yield from found["documents"]
            after = found["after"]
            if after is None:
                return

    def failures(self, limit: int = 100) -> Table:
        """Documents that could not be filled, with the reason."""
        columns = ("document", "state", "attempts", "error")
        return Table(self._send(commands.ListFailures, limit=limit), columns)

    def corrections(self, limit: int = 100) -> Table:
        """Filled values that people changed or confirmed, newest first; `show()` has their number.

        They are people's since, and labels of the next fit.
        """
        columns = ("document", "field", "how", "version", "at")
        return Table(self._send(commands.ListCorrections, limit=limit), columns)

    # Acting ----------------------------------------------------------------------------------

    def preview(self, n: int = 10) -> Table:
        """What would be filled in up to `n` documents; writes nothing."""
        rows = self._send(commands.PreviewImputation, n=n)
        return Table(map(decoded, rows), DOCUMENT_COLUMNS)

    def _predict(self, inputs: list[Any], version: int | None) -> Any:
        return self._send(commands.PredictImputation, inputs=inputs)

    def retry_failures(self) -> int:
        """Try the documents that failed once more; answers how many."""
        return int(self._send(commands.RetryFailures)["retried"])

    def refit(self) -> Self:
        """Train a new version on the labels that are there now."""
        self._send(commands.RefitImputation)
        return self

    def promote(self, version: int) -> Self:
        """Make a version the live one."""
        self._send(commands.PromoteVersion, version=version)
        return self

    def rollback(self, refill: bool = False) -> Self:
        """Make the version that was live before live again.

        What the other filled stays until `revert`; with `refill=True` it is replaced.
        """
        self._send(commands.RollbackImputation, refill=refill)
        return self

    def revert(self, version: int, force: bool = False) -> int:
        """Take back every value that a version filled and nobody changed; answers how many.

        The live version would fill them again at once, so it must be rolled back or the
        imputation paused first, or `force=True` given, which pauses it.
        """
        return int(self._send(commands.RevertVersion, version=version, force=force)["reverted"])

    def redo(self, version: int) -> int:
        """Put back what `revert` took, where what it left still stands; answers how many."""
        return int(self._send(commands.RedoVersion, version=version)["redone"])

    def pause(self) -> Self:
        """Stop filling."""
        self._send(commands.PauseImputation)
        return self

    def resume(self) -> Self:
        """Go on filling, beginning with what was missed."""
        self._send(commands.ResumeImputation)
        return self

    def delete(self) -> None:
        """Stop and forget it; values that it filled stay."""
        self._send(commands.DeleteImputation)

    # Looks -----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        try:
            state = self.show()
        except SuperduperError as error:
            return f"<Imputation {self.name!r}: {error.message}>"
        version = "" if state["active"] is None else f", version {state['active']}"
        metrics = "".join(f", {k} {v:.4g}" for k, v in (state["metrics"] or {}).items())
        source, target = _keys(state["model_key"]), _keys(state["target_key"])
        return (
            f"<Imputation {self.name!r}: {source} → {target}, {state['status']}{version}{metrics}>"
        )

    def _repr_html_(self) -> str:
        state = self.show()
        rows = [{"": key, " ": state[key]} for key in SHOWN]
        return html_table(rows, ("", " "))


ACTIVE_JOB = ("queued", "running")
SHOWN = ("name", "status", "model_key", "target_key", "model", "active", "metrics", "error")
VERSION_COLUMNS = ("version", "status", "live", "metrics", "documents", "started_at", "seconds")


def _keys(keys: Any) -> str:
    return keys if isinstance(keys, str) else ", ".join(keys)


def _error(name: str, error: Mapping[str, Any]) -> SuperduperError:
    kind, message = type(error_of(error.get("code") or "user_code", "")), error["message"]
    if error.get("type") not in (None, "", kind.__name__):  # what a user's own code raised
        message = f"{error['type']}: {message}"
    found = kind(f"imputation {name!r}: {message}")
    if error.get("traceback"):
        found.add_note(str(error["traceback"]))
    return found


def _why_waiting(name: str, state: Mapping[str, Any], timeout: float | None) -> str:
    text = f"imputation {name!r} is still {state['status']} after {timeout:g} s"
    if not state["workers"]:
        text += "; no worker is alive: start one with `superduper work`"
    return text


class _Phase(NamedTuple):
    """How far a fit, or the filling of what is there, has come."""

    name: str
    done: int
    total: int | None
    unit: str
    notes: str
    over: bool


def _phases(state: Mapping[str, Any], before: str) -> Iterator[_Phase]:
    """The phase that an imputation is in, after that which it was in `before` if that is over."""
    fit, scan = state["fit"], state["scan"]
    fitting = fit is not None and fit["state"] in ACTIVE_JOB
    if fitting or (fit is not None and before == "fit"):
        progress = fit["progress"] or {}
        metrics = (progress.get("metrics") or {}).items()
        notes = ", ".join(f"{name} {value:.4g}" for name, value in metrics)
        done, total = progress.get("done", 0), progress.get("total")
        yield _Phase("fit", done, total, "step", notes, over=not fitting)
    if not fitting and (state["status"] == "filling" or before == "fill"):
        seen, left, eta = scan.get("seen", 0), scan.get("left", 0), scan.get("eta_seconds")
        notes = "" if eta is None else f"about {eta:.0f} s left"
        over = state["status"] != "filling"
        yield _Phase("fill", seen, seen + left or None, "document", notes, over=over)


class _Bar:
    """The progress bar of `wait`: first the fit, then the filling of what is there."""

    def __init__(self, name: str, *, enabled: bool) -> None:
        self._name = name
        self._enabled = enabled
        self._drawn = sys.stderr.isatty() or _in_ipython()
        self._told = -math.inf
        self._bar: Any = None
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, state: Mapping[str, Any]) -> None:
        """Show the state that was just read; a phase that is over once more."""
        for phase in _phases(state, self._phase) if self._enabled else ():
            if self._drawn:
                self._draw(phase)
            else:
                self._tell(phase)
            self._phase = "" if phase.over else phase.name

    def _draw(self, phase: _Phase) -> None:
        if phase.name != self._phase:
            self.__exit__()
            self._bar = _new_bar(desc=f"{phase.name} {self._name}", unit=f" {phase.unit}s")
        self._bar.set_postfix_str(phase.notes, refresh=False)
        self._bar.total = phase.total
        self._bar.update(max(0, phase.done - self._bar.n))
        self._bar.refresh()

    def _tell(self, phase: _Phase) -> None:
        """A line when a phase begins, every few seconds, and when it is over."""
        now = time.monotonic()
        if phase.name == self._phase and now - self._told < LINE_SECONDS and not phase.over:
            return
        self._told = now
        of = "" if phase.total is None else f" of {phase.total}"
        notes = f", {phase.notes}" if phase.notes else ""
        line = f"{phase.name} {self._name}: {phase.done}{of} {phase.unit}s{notes}"
        print(line, file=sys.stderr, flush=True)


def _in_ipython() -> bool:
    """Whether this is a notebook (whose stderr is no terminal) or IPython's prompt."""
    return hasattr(builtins, "__IPYTHON__")


def _new_bar(**settings: Any) -> Any:
    """A widget in a notebook that has them, else a line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's, that the notebook has no widgets
        from tqdm.auto import tqdm
    return tqdm(**settings)
