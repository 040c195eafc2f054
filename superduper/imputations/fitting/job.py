"""The fit of an imputation, as a job: read documents once, train in a child, publish, promote.

This side has the database and no user code; the child (`fit_child`) has user code and no database.
"""

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pymongo.database import Database

from superduper import settings
from superduper.errors import InvalidInput, NotReady
from superduper.imputations.fitting.checkpoints import FitCheckpoints, OtherFit
from superduper.imputations.fitting.components import FitComponents
from superduper.imputations.fitting.data import Brought, FitData, RecordCache
from superduper.imputations.fitting.publishing import Publisher
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.promote import promote_if_better
from superduper.jobs.child import Child
from superduper.jobs.limits import Limits
from superduper.jobs.queue import Cancelled, RunningJob, error_document
from superduper.jobs.worker import RETRIED
from superduper.store.artifacts import ArtifactStore
from superduper.store.audit import Audit
from superduper.store.registry import Registry
from superduper.training.checkpoint_files import PREFIX
from superduper.training.runs import Runs

logger = logging.getLogger(__name__)

ENTRY = "superduper.imputations.fitting.child:main"
# torch's optimizers import `torch._dynamo` when the first of them is made, which takes as long as
# torch itself.
PRELOAD = ("superduper.imputations.fitting.child", "torch._dynamo")
REPORT_SECONDS = 0.2
# Less than the ten minutes after which a server forgets a cursor that nobody reads from.
BATCH_SECONDS = 540
LOAD_SECONDS = 300
COMPARE_SECONDS = 3_600
# Training files are as large as the data is; the disk is the limit.
FILE_MB = 1 << 20
RECORDS = "records"
WEIGHTS = "weights.safetensors"
DOMAIN = "domain.safetensors"
_SEEDS = 2**31

_SEALED = ("data", "validated_on", "skipped", "initial_hash", "domain")
_TRAINING = (
    "optimizer",
    "lr",
    "policies",
    "trainer",
    "batch_size",
    "max_epochs",
    "max_steps",
    "patience",
    "watch",
    "mixed_precision",
    "processes",
)
_OF_RUN = ("model", "target", "loss", "metrics", "pins", "out_of_domain")
RESUME = "resume"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class FitContext:
    """What a fit works with."""

    database: Database[Any]
    registry: Registry
    artifacts: ArtifactStore
    imputations: Imputations

    @cached_property
    def runs(self) -> Runs:
        """The runs of the database."""
        return Runs(self.database)

    @cached_property
    def audit(self) -> Audit:
        """The audit log of the database."""
        return Audit(self.database)

    @cached_property
    def checkpoints(self) -> FitCheckpoints:
        """The checkpoints of the database's fits."""
        return FitCheckpoints(self.database, self.artifacts.keyring)


def fit(job: RunningJob, work: FitContext) -> dict[str, Any]:
    """Train a new version of the imputation that the job names; answers what became of it.

    Arguments of the job: `collection`, `imputation`, and `by` for the history. Raises what the
    fit failed of, after recording it in the run.
    """
    record = work.imputations.get(job.args["collection"], job.args["imputation"])
    return _Fit(job, work, record).run()


def adopt(imputations: Imputations, runs: Runs, record: ImputationRecord, *, by: str) -> int:
    """Make the pinned model, as it is, the live version of an imputation without a loss."""
    version = imputations.next_version(record)
    model_version = record.spec["pins"]["model"]
    run = runs.begin(_begun(record, None, None))
    runs.finish(run, "succeeded", version=version, model_version=model_version)
    imputations.activate(
        record.collection,
        record.name,
        version,
        by=by,
        reason="used as it is",
        model_version=model_version,
    )
    return version


def _check(record: ImputationRecord) -> None:
    if not record.trained:
        raise InvalidInput(f"imputation {record.id!r} has no loss, so there is nothing to train")


def _begun(record: ImputationRecord, job: str | None, seed: int | None) -> dict[str, Any]:
    spec = record.spec
    return {
        "collection": record.collection,
        "imputation": record.id,
        "job": job,
        "seed": seed,
        "settings": {key: spec.get(key) for key in (*_OF_RUN, *_TRAINING)},
    }


def _identity(sealed: Mapping[str, Any]) -> dict[str, str]:
    """What a checkpoint of a fit must be of: the same data and the same initial model."""
    hashes = {fold: str(part["hash"]) for fold, part in sealed["data"].items()}
    return {**hashes, "model": str(sealed["initial_hash"])}


class _Fit:
    """One attempt."""

    def __init__(self, job: RunningJob, work: FitContext, record: ImputationRecord) -> None:
        self.job = job
        self.work = work
        self.record = record
        several = (record.spec.get("processes") or 1) > 1
        limits = Limits.of_settings(file_mb=FILE_MB, loopback=several)
        self.child = Child(ENTRY, limits=limits, name=f"fit {record.id}")
        self.components = FitComponents(work.registry, record)
        self.rows: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.of: dict[str, str] = {}
        self.metrics: dict[str, float] = {}
        self.epochs = 0
        self.reported = 0.0

    def run(self) -> dict[str, Any]:
        runs, job = self.work.runs, self.job
        earlier = runs.abandon(job.id, "its worker died or lost the job; the job was tried again")
        # A job that is tried again repeats what it did before.
        seed = earlier[-1]["seed"] if earlier else self.record.spec.get("seed")
        self.seed = secrets.randbelow(_SEEDS) if seed is None else seed
        begun = _begun(self.record, job.id, self.seed)
        self.run_id = runs.begin({**begun, "parent": earlier[-1]["_id"] if earlier else None})
        try:
            _check(self.record)
            cache = RecordCache.open()
            with cache.workplace() as folder:
                self.child.grant(folder)
                self.child.start(PRELOAD)
                with self.child:
                    return self._run(folder, cache)
        except BaseException as error:
            self._failed(error)
            raise

    def _failed(self, error: BaseException) -> None:
        """Record in the run what it failed of, and in the imputation if nobody tries again."""
        stopped = isinstance(error, Cancelled | KeyboardInterrupt | SystemExit)
        told = {**error_document(error), "job": self.job.id, "run": self.run_id}
        self._flush()
        self.work.runs.finish(self.run_id, "cancelled" if stopped else "failed", error=told)
        again = isinstance(error, RETRIED) and self.job.attempts < self.job.max_attempts
        if self.job.cancelled.is_set() or not (stopped or again or self.job.lost):
            self.work.imputations.set_error(self.record, told)
            self.work.checkpoints.forget(self.job.id)

    def _run(self, folder: Path, cache: RecordCache) -> dict[str, Any]:
        self._load(folder)
        data = self._bring_data(cache)
        message = {"op": "seal", "reopened": data.reopened, "domain": DOMAIN}
        sealed = self._ask(message, BATCH_SECONDS)
        if sealed["saved"]:
            data.keep(folder / RECORDS)
        facts = {key: sealed[key] for key in _SEALED}
        self.work.runs.update(self.run_id, **facts, reopened=data.reopened)
        self.folder, self.of = folder, _identity(sealed)
        message = {"op": "train", "weights": WEIGHTS, "resume": self._resume()}
        trained = self._ask(message, None, self._on_event)
        self._flush()
        version, promoted, reason = self._publish(sealed, trained)
        self.work.checkpoints.forget(self.job.id)
        return {
            "run": self.run_id,
            "version": version,
            "promoted": promoted,
            "reason": reason,
            "best": trained["best"],
            "metrics": trained["metrics"],
        }

    def _ask(
        self,
        message: Mapping[str, Any],
        timeout: float | None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        interrupted = self.job.interrupted
        return self.child.request(message, timeout, on_event, cancel=interrupted)

    # Loading ---------------------------------------------------------------------------------

    def _load(self, folder: Path) -> None:
        self.job.progress({"phase": "loading", "done": 0})
        training = {key: self.record.spec.get(key) for key in _TRAINING}
        message = {
            "op": "load",
            "device": settings.get("DEVICE"),
            "folder": str(folder),
            "records": RECORDS,
            "settings": {**training, "seed": self.seed},
            "out_of_domain": self.record.spec.get("out_of_domain"),
            "saving_seconds": settings.get_number("CHECKPOINT_SECONDS"),
            "fields": {
                "inputs": list(self.record.input_paths),
                "targets": list(self.record.target_paths),
                "excluded": list(self.record.hidden_paths),
            },
            **self.components.payloads(),
        }
        loaded = self._ask(message, LOAD_SECONDS)
        self.work.runs.update(self.run_id, device=loaded["device"], versions=loaded["versions"])

    # Reading ---------------------------------------------------------------------------------

    def _bring_data(self, cache: RecordCache) -> Brought:
        def report(read: int, skipped: int) -> None:
            self._report({"phase": "reading", "documents": read, "skipped": skipped, "done": 0})

        data = FitData(self.work.database, self.record, cache, self.components.made_by())
        return data.bring(lambda message: self._ask(message, BATCH_SECONDS), report)

    # Training --------------------------------------------------------------------------------

    def _resume(self) -> str | None:
        """The folder with the checkpoint of an earlier attempt, if there is one to go on from."""
        try:
            found = self.work.checkpoints.fetch(self.job.id, self.of, self.folder / RESUME)
        except OtherFit as refused:
            logger.warning("fit %s begins anew: %s", self.record.id, refused)
            self.work.checkpoints.forget(self.job.id)
            self.work.runs.update(self.run_id, not_resumed=str(refused))
            return None
        if found is None:
            return None
        self.epochs = found.epochs
        self.work.runs.take_over(self.run_id, found.run, found.epochs, found.step)
        logger.info("fit %s goes on after step %d", self.record.id, found.step)
        return RESUME

    def _on_event(self, event: dict[str, Any]) -> None:
        match event:
            case {"row": dict(row), "of": total}:
                self.rows.append(row)
                self.epochs = int(row["epoch"])
                self.metrics = {k: v for k, v in row.items() if k not in ("epoch", "step")}
                step = row
            case {"step": dict(step), "rows": list(rows)}:
                self.steps += rows
                total = step["of"]
            case {"unsaved": str(message)}:
                raise NotReady(message)  # tried again, from the checkpoint before
            case {"checkpoint": int(number)}:
                self._keep(self.folder / CHECKPOINTS / str(number))
                return
            case _:
                return
        self._report(
            {
                "phase": "training",
                "epoch": step["epoch"],
                "done": step["step"],
                "total": total,
                "metrics": self.metrics,
            }
        )

    def _keep(self, folder: Path) -> None:
        """Keep a checkpoint that the child has left; the history up to it comes first."""
        self._flush()
        self.job.check()
        for path in folder.glob(f"{PREFIX}*"):
            self.work.checkpoints.keep(self.job.id, self.run_id, path, self.of, self.epochs)
        shutil.rmtree(folder)
        self.job.advanced()
        if self.job.stopping.is_set():
            raise Cancelled(f"job {self.job.id} is given back, to go on from its checkpoint")

    def _done(self, steps: int) -> dict[str, Any]:
        return {"done": steps, "total": steps, "metrics": self.metrics}

    def _report(self, progress: dict[str, Any]) -> None:
        """Write progress and history, at most a few times a second."""
        now = time.monotonic()
        if now - self.reported >= REPORT_SECONDS:
            self.reported = now
            self.job.progress(progress)
            self._flush()

    def _flush(self) -> None:
        rows, self.rows = self.rows, []
        steps, self.steps = self.steps, []
        self.work.runs.append(self.run_id, rows, steps)

    # Publishing ------------------------------------------------------------------------------

    def _publish(
        self, sealed: Mapping[str, Any], trained: Mapping[str, Any]
    ) -> tuple[int, bool, str]:
        """Publish what was trained, and make it live if it is better: version, whether, why."""
        self.job.progress({"phase": "publishing", **self._done(trained["steps"])})
        publisher = Publisher(self.work, self.record, self.job.id, self.run_id)
        weights = (self.folder / WEIGHTS).read_bytes()
        domain = (self.folder / DOMAIN).read_bytes() if sealed["domain"] is not None else None
        candidate = publisher.publish(weights, domain, sealed, trained)
        promoted, reason = promote_if_better(
            candidate,
            self.record,
            imputations=self.work.imputations,
            registry=self.work.registry,
            runs=self.work.runs,
            compare=self._compare,
            by=self.job.args.get("by", "fit"),
        )
        if promoted:
            publisher.note("PromoteVersion", candidate.version)
        self.work.runs.update(self.run_id, promoted=promoted, reason=reason)
        return candidate.version, promoted, reason

    def _compare(self, model_version: int) -> dict[str, float]:
        payload = self.components.model(model_version)
        answer = self._ask({"op": "compare", "model": payload}, COMPARE_SECONDS)
        self.job.check()
        return dict(answer["metrics"])
