"""Handles on models, imputations and jobs, for asyncio."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from superduper.handles import Imputation
from superduper.predicting import Model, Predicting, PredictionJob
from superduper_client.awaited import Awaited, Bridge, awaited, chained, in_turn

H = TypeVar("H", covariant=True)
M = TypeVar("M", bound=Predicting)


class Place(Protocol):
    """The collection that a handle came from."""

    name: str

    async def bridge(self) -> Bridge: ...


class Handle(Awaited[H]):
    """A handle on something that a collection has."""

    def __init__(self, place: "Place", name: str) -> None:
        self._place = place
        self.name = name

    async def bridge(self) -> Bridge:
        return await self._place.bridge()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class AsyncPredictionJob(Handle[PredictionJob]):
    """Predictions that a worker makes, and their rows as they come."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.name

    def _facade(self, bridge: Bridge) -> PredictionJob:
        return PredictionJob(bridge, self.name)

    async def status(self) -> str:
        """queued, running, succeeded, failed or cancelled."""
        return await self._beside(lambda job: job.status)

    rows = in_turn(PredictionJob.rows)
    cancel = awaited(PredictionJob.cancel)


class AsyncPredicting(Handle[M]):
    """Something that predicts."""

    predict_documents = awaited(Predicting.predict_documents)
    stream = in_turn(Predicting.stream)
    explain = awaited(Predicting.explain)
    traffic = awaited(Predicting.traffic)
    set_traffic = awaited(Predicting.set_traffic)

    async def predict_later(
        self,
        values: Sequence[Any] | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
        key: str | Sequence[str] | None = None,
        version: int | None = None,
    ) -> AsyncPredictionJob:
        """Have a worker predict many values, or the documents that match a filter: a job."""
        asked: dict[str, Any] = {"filter": filter, "key": key, "version": version}
        job = await self._beside(lambda facade: facade.predict_later(values, **asked))
        return AsyncPredictionJob(self._place, job.id)


class AsyncModel(AsyncPredicting[Model]):
    """A registered model, to be asked."""

    kind = Model.kind

    def _facade(self, bridge: Bridge) -> Model:
        return Model(bridge, self._place.name, self.name)

    predict = awaited(Model.predict)
    form = awaited(Model.form)
    set_form = awaited(Model.set_form)


class AsyncImputation(AsyncPredicting[Imputation]):
    """A field that is predicted from another; every question asks the database."""

    kind = Imputation.kind

    def _facade(self, bridge: Bridge) -> Imputation:
        return Imputation(bridge, self._place.name, self.name)

    async def status(self) -> str:
        """fitting, filling, watching, ready, paused or failed."""
        return await self._beside(lambda imputation: imputation.status)

    async def version(self) -> int | None:
        """The live version; None while there is none."""
        return await self._beside(lambda imputation: imputation.version)

    predict = awaited(Imputation.predict)
    show = awaited(Imputation.show)
    wait = chained(Imputation.wait)
    versions = awaited(Imputation.versions)
    history = awaited(Imputation.history)
    counts = awaited(Imputation.counts)
    documents = in_turn(Imputation.documents)
    failures = awaited(Imputation.failures)
    corrections = awaited(Imputation.corrections)
    preview = awaited(Imputation.preview)
    retry_failures = awaited(Imputation.retry_failures)
    refit = chained(Imputation.refit)
    promote = chained(Imputation.promote)
    rollback = chained(Imputation.rollback)
    revert = awaited(Imputation.revert)
    redo = awaited(Imputation.redo)
    pause = chained(Imputation.pause)
    resume = chained(Imputation.resume)
    delete = awaited(Imputation.delete)
