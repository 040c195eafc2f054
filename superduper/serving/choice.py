"""Which form of a model serves: a faster one is tried beside the plain one, and must earn it.

Where models run, once a model is loaded and before it answers.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from superduper.serving.agreement import Agreement, Limits, compare
from superduper.serving.failures import CONTAINED
from superduper.serving.predictor import Predictor
from superduper.serving.stored import decoding, predict_stored

Report = dict[str, Any]
"""`asked`, `serves`, `why` if that is not what was asked, and a `Trial.told` for each form in
`tried`."""

PLAIN, AUTO = "plain", "auto"
BATCHES = (1, 64)
LEAST_SPEEDUP = 1.1
ENOUGH_SECONDS = 60.0
MEASURE_SECONDS = 0.2


@dataclass
class Trial:
    """How a form did; `why` says why it may not serve."""

    form: str
    why: str | None = None
    agreement: Agreement | None = None
    speedups: tuple[float, ...] = ()
    run: Any = None

    @property
    def speedup(self) -> float:
        """How many times as fast as the plain form: the geometric mean over the batches."""
        return math.prod(self.speedups) ** (1 / len(self.speedups)) if self.speedups else 0.0

    @property
    def told(self) -> dict[str, Any]:
        """What users see of it."""
        agreement = self.agreement
        difference = math.inf if agreement is None else agreement.difference
        return {
            "form": self.form,
            "why": self.why,
            "difference": difference if math.isfinite(difference) else None,
            "same": agreement and agreement.same,
            "speedup": round(self.speedup, 2) or None,
            "speedups": {
                str(rows): round(each, 2)
                for rows, each in zip(BATCHES, self.speedups, strict=False)
            },
        }


def choose(predictor: Predictor, values: Sequence[Any], asked: str, limits: Limits) -> Report:
    """Have the predictor use the form that is asked for, or the fastest, if it agrees.

    They are compared on stored values. The plain form stays wherever a faster one does not earn it,
    and the report says why.
    """
    began = time.monotonic()
    report: Report = {"asked": asked, "serves": PLAIN, "why": None, "inputs": 0, "tried": []}
    if not predictor.is_module:
        return {**report, "why": "only a torch module has other forms"}
    from superduper.serving import forms

    plain = predict_stored(predictor, values) if values else []
    known = [index for index, outcome in enumerate(plain) if not outcome.get("error")]
    report["inputs"] = len(known)
    if not known:
        return {**report, "why": "the model itself fails on every input that it is compared on"}
    told, outcomes = ([each[index] for index in known] for each in (values, plain))
    samples = predictor.samples(list(map(decoding(predictor), told)))
    comparing = _Comparing(predictor, told, outcomes, samples, limits)
    trials: list[Trial] = []
    for form in forms.FORMS if asked == AUTO else (asked,):
        if trials and time.monotonic() - began > ENOUGH_SECONDS:
            trials.append(Trial(form, "there was no time left to try it"))
            continue
        trials.append(comparing.attempt(form))
    report["tried"] = [trial.told for trial in trials]
    fit = [trial for trial in trials if trial.why is None]
    if not fit:
        return {**report, "why": "; ".join(f"{trial.form}: {trial.why}" for trial in trials)}
    best = max(fit, key=lambda trial: trial.speedup)
    predictor.faster = best.run
    return {**report, "serves": best.form}


@dataclass(frozen=True)
class _Comparing:
    predictor: Predictor
    values: Sequence[Any]
    plain: Sequence[Any]
    samples: list[Any]
    limits: Limits

    def attempt(self, form: str) -> Trial:
        """Build a form, compare it, and measure it; the predictor is left plain."""
        from superduper.serving import forms

        trial = Trial(form)
        try:
            with self.predictor.evaluating():
                self._attempt(trial)
        except CONTAINED as error:
            trial.why = f"it cannot be made: {forms.said(error)}"
        finally:
            self.predictor.faster = None
        return trial

    def _attempt(self, trial: Trial) -> None:
        from superduper.serving import forms

        made = forms.build(trial.form, self.predictor.model, self._batch(forms.LEAST_ROWS))
        trial.run = self.predictor.faster = forms.Guarded(made, self.predictor.run_plain)
        outcomes = predict_stored(self.predictor, self.values)
        if trial.run.left:
            trial.why = trial.run.trouble
            return
        trial.agreement = compare(self.plain, outcomes, self.limits)
        trial.why = trial.agreement.refused(self.limits)
        trial.speedups = tuple(self._speedup(trial.run, self._batch(rows)) for rows in BATCHES)
        if trial.why is None and trial.speedup < LEAST_SPEEDUP:
            trial.why = f"it is not faster: {trial.speedup:.2f} times as fast as the plain form"

    def _batch(self, rows: int) -> Any:
        """A batch of that many rows, of the inputs whose samples are like the first."""
        from superduper.serving import collate

        wanted = collate.form(self.samples[0])
        like = [sample for sample in self.samples if collate.form(sample) == wanted]
        return self.predictor.batch([like[row % len(like)] for row in range(rows)])

    def _speedup(self, run: Callable[[Any], Any], batch: Any) -> float:
        plain = self.predictor.run_plain
        return self._seconds(plain, batch) / self._seconds(run, batch)

    def _seconds(self, call: Callable[[Any], Any], batch: Any) -> float:
        """The time of a call: the least of several, so that others do not count."""
        from superduper.devices import stopwatch

        clock = stopwatch(self.predictor.device)
        call(batch)
        times: list[float] = []
        while len(times) < 3 or sum(times) < MEASURE_SECONDS:
            began = clock()
            call(batch)
            times.append(clock() - began)
        return max(min(times), 1e-9)
