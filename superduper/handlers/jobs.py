"""Commands about jobs, runs and the state of everything."""

from collections.abc import Mapping, Sequence
from typing import Any

from superduper import commands
from superduper.handlers.context import Context
from superduper.handlers.imputations import scan_shown
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.readiness import troubles
from superduper.jobs.worker import alive_workers
from superduper.version import __version__


def shown(job: dict[str, Any]) -> dict[str, Any]:
    """A job as users see it."""
    return {("id" if key == "_id" else key): value for key, value in job.items()}


def list_jobs(context: Context, command: commands.ListJobs) -> list[dict[str, Any]]:
    """Jobs, newest first."""
    return [shown(job) for job in context.queue.list(command.state, command.limit)]


def show(context: Context, command: commands.ShowJob) -> dict[str, Any]:
    """One job."""
    return shown(context.queue.get(command.id))


def cancel(context: Context, command: commands.CancelJob) -> dict[str, Any]:
    """Ask a job to stop."""
    context.queue.cancel(command.id)
    return shown(context.queue.get(command.id))


def list_runs(context: Context, command: commands.ListRuns) -> list[dict[str, Any]]:
    """Trainings, newest first."""
    return [_shown(run) for run in context.runs.list(command.collection, command.limit)]


def show_run(context: Context, command: commands.ShowRun) -> dict[str, Any]:
    """One training with its history."""
    return _shown(context.runs.get(command.id))


def _shown(run: Mapping[str, Any]) -> dict[str, Any]:
    return {("id" if key == "_id" else key): value for key, value in run.items()}


def highscores(context: Context, command: commands.Highscores) -> list[dict[str, Any]]:
    """Finished runs ranked by a metric."""
    return context.runs.highscores(command.collection, command.metric, command.limit)


def _rest_of(context: Context, record: ImputationRecord) -> dict[str, Any]:
    """How much of a scan is left, and for how many seconds."""
    scan = scan_shown(context, record) if record.status == "filling" else {}
    return {name: scan.get(name) for name in ("left", "rate", "eta_seconds", "trouble")}


def _waiting(jobs: Mapping[str, int], workers: Sequence[Any]) -> list[str]:
    """That jobs wait for nobody. It does not keep a server from answering, as `troubles` do."""
    left = jobs["queued"] + jobs["running"]
    return [f"{left} jobs wait, and no worker is alive"] if left and not workers else []


def status(context: Context, command: commands.ShowStatus) -> dict[str, Any]:
    """Workers, imputations and jobs at a glance."""
    workers = alive_workers(context.database)
    jobs = {
        state: context.database["superduper.jobs"].count_documents({"state": state})
        for state in ("queued", "running", "failed")
    }
    return {
        "database": context.database.name,
        "version": __version__,
        "workers": workers,
        "imputations": [
            {
                "collection": record.collection,
                "name": record.name,
                "status": record.status,
                "active": record.active,
                **_rest_of(context, record),
            }
            for record in context.imputations.find()
        ],
        "troubles": [*troubles(context.database), *_waiting(jobs, workers)],
        "streams": list(
            context.database["superduper.watchers"].find({}, {"token": 0}).sort("_id", 1)
        ),
        "jobs": jobs,
    }
