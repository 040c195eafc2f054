"""Commands about jobs, runs and the state of everything."""

from typing import Annotated

from pydantic import Field

from superduper.command import CollectionName, Command, Limit, Route


class ListJobs(Command):
    """Jobs, newest first."""

    route = Route("GET", "/v1/jobs")
    state: str | None = None
    limit: Limit = 50


class ShowJob(Command):
    """One job: its state, progress, result or error."""

    route = Route("GET", "/v1/jobs/{id}")
    id: Annotated[str, Field(max_length=64)]


class CancelJob(Command):
    """Ask a job to stop."""

    route = Route("POST", "/v1/jobs/{id}/cancel", role="trainer")
    id: Annotated[str, Field(max_length=64)]


class ListRuns(Command):
    """Trainings, newest first."""

    route = Route("GET", "/v1/runs")
    collection: CollectionName | None = None
    limit: Limit = 50


class ShowRun(Command):
    """One training with its history: a row per epoch, and rows about steps."""

    route = Route("GET", "/v1/runs/{id}")
    id: Annotated[str, Field(max_length=64)]


class Highscores(Command):
    """Finished runs ranked by a metric, comparable where their test data's hash is equal."""

    route = Route("GET", "/v1/highscores")
    collection: CollectionName | None = None
    metric: str | None = None
    limit: Limit = 50


class ShowStatus(Command):
    """Workers, imputations, backlog and jobs at a glance."""

    route = Route("GET", "/v1/status")
