"""Commands about imputations: declare, show, refit, choose the live version."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from superduper import commands
from superduper.errors import AlreadyExists, InvalidInput, NotFound
from superduper.handlers.context import Context
from superduper.handlers.pins import pins_of
from superduper.imputations import failures
from superduper.imputations.corrections import Corrections
from superduper.imputations.counts import count_states
from superduper.imputations.declare import record_of, watcher_of
from superduper.imputations.explain import Explainer
from superduper.imputations.fitting.job import adopt
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import BASE
from superduper.imputations.revert import redo_version, revert_version
from superduper.imputations.states import States, preview
from superduper.imputations.watching.ranges import Ranges
from superduper.jobs.worker import alive_workers
from superduper.store.component import head_id
from superduper.store.traffic import traffic_id

FIT = "fit"


# Declaring -----------------------------------------------------------------------------------


# Arguments that are agreed on, and that nothing heeds yet: they are refused, not swallowed.
UNHEEDED = ("precision", "confidence", "max_width", "refit_after")


def _check(context: Context, command: commands.CreateImputation, record: ImputationRecord) -> None:
    for setting in UNHEEDED:
        if getattr(command, setting) != commands.CreateImputation.model_fields[setting].default:
            raise InvalidInput(f"{setting}= has no effect in this release: leave it out")
    own_steps = command.trainer is not None  # which measure what they like
    if command.watch != "loss" and command.watch not in command.metrics and not own_steps:
        raise InvalidInput(
            f"watch={command.watch!r} is neither 'loss' nor one of the metrics "
            f"({', '.join(command.metrics) or 'there are none'})"
        )
    if not record.trained:
        if command.out_of_domain is not None:
            raise InvalidInput(
                "out_of_domain: a fit learns what inputs are compared with, and without a loss "
                "there is none: leave it out, or give a loss"
            )
        return
    paths = [path for path in (*record.input_paths, *record.target_paths) if path != BASE]
    both: dict[str, Any] = {path: {"$exists": True} for path in paths}
    if context.database[command.collection].find_one(both, {"_id": 1}) is None:
        raise InvalidInput(
            f"nothing to learn from: no document of {command.collection!r} has "
            f"{' and '.join(repr(path) for path in paths)}"
        )


def create(context: Context, command: commands.CreateImputation, author: str) -> dict[str, Any]:
    """Declare an imputation and queue its fit; the same declaration again changes nothing."""
    record = record_of(
        command, pins_of(context.registry, command), now=context.now(), author=author
    )
    _check(context, command, record)
    return _declare(context, record)


def create_watcher(context: Context, command: commands.CreateWatcher, author: str) -> Any:
    """Declare a watcher on a model that is used as it is."""
    model = context.registry.get(command.collection, "model", command.model)
    pins = {"model": model.version, "metrics": {}}
    record = watcher_of(command, pins, now=context.now(), author=author)
    return _declare(context, record)


def _check_is_no_view(context: Context, name: str) -> None:
    found = context.database.list_collections(filter={"name": name})
    if any(each.get("type") == "view" for each in found):
        raise InvalidInput(
            f"{name!r} is a view, into which nothing can be written: declare the imputation on "
            "the collection that it is a view of"
        )


def _declare(context: Context, record: ImputationRecord) -> dict[str, Any]:
    _check_is_no_view(context, record.collection)
    try:
        context.imputations.create(record)
    except AlreadyExists:
        there = context.imputations.get(record.collection, record.name)
        if not _same(there.spec, record.spec):
            raise
        return shown(context, there)
    if record.trained:
        _queue_fit(context, record)
    else:
        adopt(context.imputations, context.runs, record, by=record.created_by)
    return shown(context, context.imputations.get(record.collection, record.name))


def _same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two declarations ask for the same, whatever the versions of their components."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            # What was declared before a setting was known has none of it.
            told = {key: each for key, each in value.items() if each is not None}
            return {key: plain(each) for key, each in told.items() if key != "pins"}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return bool(plain(first) == plain(second))


def _queue_fit(context: Context, record: ImputationRecord) -> str:
    job = context.queue.put(FIT, {"collection": record.collection, "imputation": record.name})
    context.imputations.set_fit(record, job)
    return job


# Showing -------------------------------------------------------------------------------------


def shown(context: Context, record: ImputationRecord) -> dict[str, Any]:
    """An imputation as users see it."""
    fit = context.queue.get(record.fit_job) if record.fit_job else None
    # A job whose worker died once too often ends without anybody to tell the imputation.
    error = record.error or (fit["error"] if fit and fit["state"] == "failed" else None)
    status = "failed" if error and record.active is None else record.status
    run = context.runs.of_version(record.id, record.active) if record.active else None
    spec = {key: value for key, value in record.spec.items() if key != "pins"}
    return {
        **spec,
        "name": record.name,
        "collection": record.collection,
        "kind": record.kind,
        "status": status,
        "error": error,
        "active": record.active,
        "latest": record.latest,
        "metrics": (run or {}).get("metrics"),
        "domain": (run or {}).get("domain"),
        "fit": fit and {k: fit.get(k) for k in ("id", "state", "progress", "attempts")},
        "scan": scan_shown(context, record),
        "corrections": Corrections(context.database, record.id).count(),
        "workers": len(alive_workers(context.database)),
        "created_at": record.created_at,
        "created_by": record.created_by,
    }


def scan_shown(context: Context, record: ImputationRecord) -> dict[str, Any]:
    """How far the scan is of what was there before; empty while none was asked for."""
    if not record.scan:
        return {}
    progress = Ranges(context.imputations, record).progress()
    kept = {key: record.scan[key] for key in _OF_SCAN if key in record.scan}
    return {**kept, **asdict(progress), "eta_seconds": progress.eta_seconds}


_OF_SCAN = ("state", "version", "asked_at", "refill", "ranges", "trouble")


def show(context: Context, command: commands.ShowImputation) -> dict[str, Any]:
    """One imputation."""
    return shown(context, context.imputations.get(command.collection, command.name))


def list_imputations(context: Context, command: commands.ListImputations) -> list[dict[str, Any]]:
    """The imputations and watchers of a collection."""
    return [
        {
            "name": record.name,
            "kind": record.kind,
            "status": record.status,
            "model": record.spec["model"],
            "model_key": record.spec["model_key"],
            "target_key": record.spec["target_key"],
            "active": record.active,
        }
        for record in context.imputations.find(command.collection)
    ]


def versions(context: Context, command: commands.ListVersions) -> list[dict[str, Any]]:
    """The versions of an imputation, newest first."""
    record = context.imputations.get(command.collection, command.name)
    return [
        {
            "version": run["version"],
            "status": run["status"],
            "live": run["version"] == record.active,
            "metrics": run.get("metrics"),
            "domain": run.get("domain"),
            "documents": (run.get("data") or {}).get("train", {}).get("n"),
            "run": run["_id"],
            "started_at": run.get("started_at"),
            "seconds": _seconds(run),
        }
        for run in context.runs.of_imputation(record.id, command.limit)
    ]


def _seconds(run: Mapping[str, Any]) -> float | None:
    if not run.get("finished_at") or not run.get("started_at"):
        return None
    return float(run["finished_at"] - run["started_at"]) / 1000


def history(context: Context, command: commands.ShowHistory) -> list[dict[str, Any]]:
    """Which version was live when; newest first."""
    record = context.imputations.get(command.collection, command.name)
    return [dict(entry) for entry in reversed(record.history)][: command.limit]


def counts(context: Context, command: commands.CountStates) -> dict[str, int]:
    """The number of documents in each state."""
    return count_states(context.database, context.imputations.get(command.collection, command.name))


def list_states(context: Context, command: commands.ListStates) -> dict[str, Any]:
    """A page of the documents in one state."""
    record = context.imputations.get(command.collection, command.name)
    after = list((command.after or {}).values())
    return States(context.database, record).page(command.state, after, command.limit)


def explain(context: Context, command: commands.ExplainValue) -> dict[str, Any]:
    """The story of one value."""
    explainer = Explainer(context.database, context.registry, context.hosts.predict_plainly)
    return explainer.explain(command.collection, command.id, command.field)


# Acting --------------------------------------------------------------------------------------


def delete(context: Context, command: commands.DeleteImputation) -> dict[str, Any]:
    """Stop and forget an imputation."""
    record = context.imputations.get(command.collection, command.name)
    if record.fit_job:
        context.queue.cancel(record.fit_job)
    context.imputations.delete(record)
    context.traffic.delete(traffic_id(record.collection, "imputation", record.name))
    return {"deleted": command.name}


def refit(context: Context, command: commands.RefitImputation) -> dict[str, Any]:
    """Queue the fit of a new version; one that is under way is used."""
    record = context.imputations.get(command.collection, command.name)
    if not record.trained:
        raise InvalidInput(f"imputation {record.name!r} has no loss, so there is nothing to train")
    if record.fit_job and context.queue.get(record.fit_job)["state"] in ("queued", "running"):
        return {"job": record.fit_job}
    context.imputations.set_error(record, None)
    return {"job": _queue_fit(context, record)}


def promote(context: Context, command: commands.PromoteVersion, author: str) -> dict[str, Any]:
    """Make a version the live one."""
    return _activate(context, command, command.version, author, "promoted")


def rollback(context: Context, command: commands.RollbackImputation, author: str) -> Any:
    """Make the version that was live before live again."""
    record = context.imputations.get(command.collection, command.name)
    earlier = [entry["version"] for entry in record.history if entry["version"] != record.active]
    if not earlier:
        raise InvalidInput(f"imputation {record.name!r} has no earlier version to go back to")
    reason = f"rolled back from {record.active}"
    refill = record.active if command.refill else None
    return _activate(context, command, earlier[-1], author, reason, refill)


def _activate(
    context: Context,
    command: commands.OnImputation,
    version: int,
    author: str,
    reason: str,
    refill: int | None = None,
) -> dict[str, Any]:
    _warm(context, context.imputations.get(command.collection, command.name), version)
    context.imputations.activate(
        command.collection,
        command.name,
        version,
        by=author,
        reason=reason,
        now=context.now(),
        refill=refill,
    )
    record = context.imputations.get(command.collection, command.name)
    assert record.active_component is not None  # activate has just set it
    model, model_version = record.active_component
    context.registry.set_live(command.collection, "model", model, model_version)
    return shown(context, record)


def _warm(context: Context, record: ImputationRecord, version: int) -> None:
    """Load what is to be live while the version before it still answers, if that is in use here."""
    if record.active_component is None:
        return
    model, live = record.active_component
    if context.hosts.is_loaded(f"{head_id(record.collection, 'model', model)}@{live}"):
        wanted = context.imputations.model_version(record, version)
        context.hosts.load(context.registry.get(record.collection, "model", model, wanted))


def revert(context: Context, command: commands.RevertVersion) -> dict[str, Any]:
    """Take back what a version filled; the live version only when forced, which pauses."""
    record = _with_version(context, command)
    if command.version == record.active and record.filling:
        if not command.force:
            raise InvalidInput(
                f"version {command.version} is live and would fill the same values again: "
                "rollback() or pause() first, or pass force=True, which pauses the imputation"
            )
        context.imputations.set_paused(record, True, now=context.now())
    return {"reverted": revert_version(context.database, record, command.version)}


def _with_version(
    context: Context, command: commands.RevertVersion | commands.RedoVersion
) -> ImputationRecord:
    """The imputation, if it has had that version; NotFound else."""
    record = context.imputations.get(command.collection, command.name)
    if command.version > record.latest:
        raise NotFound(f"imputation {record.id!r} has no version {command.version}: see versions()")
    return record


def redo(context: Context, command: commands.RedoVersion) -> dict[str, Any]:
    """Put back what was taken."""
    record = _with_version(context, command)
    return {"redone": redo_version(context.database, record, command.version)}


def pause(context: Context, command: commands.PauseImputation) -> dict[str, Any]:
    """Stop filling."""
    return _set_paused(context, command, True)


def resume(context: Context, command: commands.ResumeImputation) -> dict[str, Any]:
    """Go on filling."""
    return _set_paused(context, command, False)


def _set_paused(context: Context, command: commands.OnImputation, paused: bool) -> dict[str, Any]:
    record = context.imputations.get(command.collection, command.name)
    context.imputations.set_paused(record, paused, now=context.now())
    return shown(context, context.imputations.get(command.collection, command.name))


def preview_fills(context: Context, command: commands.PreviewImputation) -> list[dict[str, Any]]:
    """What would be filled in a few documents; writes nothing."""
    record = context.imputations.get(command.collection, command.name)
    component = live_component(context, record)
    return preview(
        context.database,
        record,
        command.n,
        lambda values: context.hosts.predict_plainly(component, values),
    )


def live_component(context: Context, record: ImputationRecord) -> Any:
    """The model version behind an imputation's live version.

    Raises NotFound while there is none.
    """
    if record.active_component is None:
        raise NotFound(f"imputation {record.name!r} has no live version yet: it is {record.status}")
    model, version = record.active_component
    return context.registry.get(record.collection, "model", model, version)


def list_failures(context: Context, command: commands.ListFailures) -> list[dict[str, Any]]:
    """Documents that could not be filled."""
    record = context.imputations.get(command.collection, command.name)
    return failures.listing(context.database, record.id, command.limit)


def list_corrections(context: Context, command: commands.ListCorrections) -> list[dict[str, Any]]:
    """Filled values that people made theirs."""
    record = context.imputations.get(command.collection, command.name)
    return Corrections(context.database, record.id).latest(command.limit)


def retry_failures(context: Context, command: commands.RetryFailures) -> dict[str, Any]:
    """Try them once more."""
    record = context.imputations.get(command.collection, command.name)
    return {"retried": failures.retry(context.database, record.id)}
