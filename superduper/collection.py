"""A collection whose missing fields fill themselves: the one facade, whatever the transport."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pymongo.collection import Collection as MongoCollection

from superduper import commands
from superduper.command import Command, build
from superduper.commands import Transport
from superduper.display import Table
from superduper.documents import Documents
from superduper.errors import InvalidInput
from superduper.fields.codec import decode, encode
from superduper.fields.sealing import seal
from superduper.handles import Imputation
from superduper.predicting import Model
from superduper.training_objects import register_objects

JOB_COLUMNS = ("id", "kind", "state", "attempts", "args", "created_at", "error")
RUN_COLUMNS = (
    "id",
    "imputation",
    "name",
    "version",
    "status",
    "metrics",
    "seed",
    "device",
    "seconds",
    "started_at",
)
SCORE_COLUMNS = (
    "rank",
    "imputation",
    "name",
    "version",
    "metric",
    "value",
    "test_fold",
    "test_hash",
    "run",
)


class Collection(Documents):
    """Documents, components and imputations of one collection.

    `native` is the pymongo collection behind it where there is one (not over HTTP): methods and
    arguments that are not listed here pass through to it, and its own errors come back.
    """

    def __repr__(self) -> str:
        return f"<Collection {self.name!r}>"

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_") or not hasattr(MongoCollection, attribute):
            raise AttributeError(f"a collection has no attribute {attribute!r}")
        if self._native is None:
            raise AttributeError(f"{attribute!r} is pymongo's and not available over HTTP")
        return getattr(self._native, attribute)

    # Components ------------------------------------------------------------------------------

    def _register(self, kind: str, name: str, parts: dict[str, Any], **more: Any) -> dict[str, Any]:
        fields = {"kind": kind, "name": name, "sealed": {}, **more}
        build(commands.RegisterComponent, collection=self.name, **fields)  # names before sealing
        fields["sealed"] = seal(parts).to_dict()
        found: dict[str, Any] = self._send(commands.RegisterComponent, **fields)
        return found

    def create_function(self, name: str, object: Callable[..., Any]) -> dict[str, Any]:
        """Register a function, such as the target of an imputation."""
        return self._register("function", name, {"object": object})

    def create_model(
        self,
        name: str,
        object: Any,
        preprocess: Callable[..., Any] | None = None,
        postprocess: Callable[..., Any] | None = None,
        sample: Any = None,
        form: str | None = None,
    ) -> dict[str, Any]:
        """Register a model; with a `sample` input it is tried out and its output noted.

        `form` ("bf16", "int8", "onnx", "compiled", or "auto" for the fastest) has servers answer
        with a faster form if it agrees on the sample; see `Model.set_form`.
        """
        parts = {"object": object, "preprocess": preprocess, "postprocess": postprocess}
        return self._register(
            "model", name, parts, sample=encode(sample), has_sample=sample is not None, form=form
        )

    def create_loss(self, name: str, object: Callable[..., Any]) -> dict[str, Any]:
        """Register a loss: `loss(output, target)` on batches."""
        return self._register("loss", name, {"object": object})

    def create_metric(self, name: str, object: Callable[..., Any]) -> dict[str, Any]:
        """Register a metric: `metric(predicted_value, true_value)` for each document."""
        return self._register("metric", name, {"object": object})

    def create_trainer(self, name: str, object: type[Any]) -> dict[str, Any]:
        """Register a Trainer subclass."""
        return self._register("trainer", name, {"object": object})

    def create_optimizer(self, name: str, object: Callable[..., Any]) -> dict[str, Any]:
        """Register an optimizer's class, or a function that makes one of a model's parameters."""
        return self._register("optimizer", name, {"object": object})

    def create_policy(self, name: str, object: Any) -> dict[str, Any]:
        """Register a policy or a schedule: an instance, or a class that is given arguments."""
        return self._register("policy", name, {"object": object})

    def create_encoder(self, name: str, object: Any) -> dict[str, Any]:
        """Register an encoder: an object with `encode(value)` and `decode(value)`."""
        return self._register("encoder", name, {"object": object})

    def list(self, kind: str) -> Table:
        """The components of a kind, or the imputations."""
        if kind == "imputation":
            rows = self._send(commands.ListImputations)
            return Table(rows, ("name", "status", "model", "model_key", "target_key", "active"))
        rows = self._send(commands.ListComponents, kind=kind)
        form = ("form",) if kind == "model" else ()
        return Table(rows, ("name", "live", "latest", "type", *form, "created_at", "created_by"))

    def show(self, kind: str, name: str, version: int | None = None) -> dict[str, Any]:
        """Everything about one component or imputation."""
        if kind == "imputation":
            return self.imputation(name).show()
        found: dict[str, Any] = self._send(
            commands.ShowComponent, kind=kind, name=name, version=version
        )
        return found

    def delete(self, kind: str, name: str, version: int | None = None) -> None:
        """Delete a component or imputation; refused while something uses it."""
        if kind == "imputation":
            self.imputation(name).delete()
        else:
            self._send(commands.DeleteComponent, kind=kind, name=name, version=version)

    # Imputations -----------------------------------------------------------------------------

    def create_imputation(self, name: str | None = None, **settings: Any) -> Imputation:
        """Declare that one field is predicted from another, and start its fit.

        Settings: `model`, `model_key`, `target_key`, and optionally `target`, `loss`, `metrics`,
        `filter`, `optimizer`, `lr`, `policies`, `trainer`, `batch_size`, `max_epochs`, `patience`,
        `watch`, `seed`, `mixed_precision`, `processes`, `min_confidence`, `out_of_domain`,
        `on_input_change`, `promote`, `watcher` and the others of
        `superduper.commands.CreateImputation`. `objective` is another word for `loss`.

        `optimizer`, `lr`, `policies` and `trainer` are names, `{"name": ..., "arguments": {...}}`
        or objects; objects are registered under names that begin with the imputation's.
        """
        if "objective" in settings:
            if settings.get("loss") is not None:
                raise InvalidInput("pass either loss= or objective=, they mean the same")
            settings["loss"] = settings.pop("objective")
        settings = register_objects(name, settings, self._register_object)
        found = self._send(commands.CreateImputation, name=name, **settings)
        return Imputation(self._transport, self.name, found["name"])

    def _register_object(self, kind: str, name: str, object: Any) -> None:
        self._register(kind, name, {"object": object})

    def create_watcher(
        self,
        name: str,
        model: str,
        key: str | Sequence[str],
        target: str | None = None,
        filter: Mapping[str, Any] | None = None,
        features: Mapping[str, str] | None = None,
    ) -> Imputation:
        """Write a model's output for every document that has `key`, now and from now on.

        It goes to `target`, else to `_outputs.<key>.<model>`; `features` names a model for each
        key of which its output is read in the key's place.
        """
        found = self._send(
            commands.CreateWatcher,
            name=name,
            model=model,
            key=key,
            target=target,
            filter=filter,
            features=features,
        )
        return Imputation(self._transport, self.name, found["name"])

    def imputation(self, name: str) -> Imputation:
        """A handle on an imputation that exists.

        Raises NotFound if it does not.
        """
        handle = Imputation(self._transport, self.name, name)
        handle.show()
        return handle

    def explain(self, document_id: Any, field: str) -> dict[str, Any]:
        """The whole story of a document's field: what made its value, or why it has none.

        A value that an imputation wrote is computed again by the version that wrote it:
        `["derived"]["identical"]` tells whether the same bits came out.
        """
        story: dict[str, Any] = decode(
            self._send(commands.ExplainValue, id=encode(document_id), field=field)
        )
        return story

    def predict(self, model: str, value: Any, version: int | None = None) -> Any:
        """A model's output for a value, or for each of a list of values."""
        return self.model(model).predict(value, version)

    def model(self, name: str) -> Model:
        """A handle on a model: predictions of documents, in pieces, later, explained."""
        return Model(self._transport, self.name, name)

    # Jobs and runs ---------------------------------------------------------------------------

    def jobs(self, limit: int = 50) -> Table:
        """Jobs, newest first."""
        return Table(self._transport.send(build(commands.ListJobs, limit=limit)), JOB_COLUMNS)

    def runs(self, limit: int = 50) -> Table:
        """Trainings, newest first."""
        return Table(self._send_about(commands.ListRuns, limit=limit), RUN_COLUMNS)

    def run(self, id: str) -> dict[str, Any]:
        """One training with its history: a row per epoch in `history`, per step in `steps`."""
        found: dict[str, Any] = self._transport.send(build(commands.ShowRun, id=id))
        return found

    def highscores(self, metric: str | None = None, limit: int = 50) -> Table:
        """Finished runs ranked by a metric, comparable where their test data is the same."""
        rows = self._send_about(commands.Highscores, metric=metric, limit=limit)
        return Table(rows, SCORE_COLUMNS)

    def _send_about(self, command: type[Command], **fields: Any) -> Any:
        return self._transport.send(build(command, collection=self.name, **fields))


class Database:
    """Collections by name."""

    def __init__(self, transport: Transport, name: str, native: Any = None) -> None:
        self._transport = transport
        self._native = native
        self.name = name

    def __getitem__(self, collection: str) -> Collection:
        name = build(commands.CountDocuments, collection=collection).collection
        native = None if self._native is None else self._native[name]
        return Collection(self._transport, name, native)

    def list_collection_names(self) -> list[str]:
        """The names of the collections there are."""
        found = self._transport.send(build(commands.ListCollections))
        return [row["name"] for row in found]

    def __repr__(self) -> str:
        return f"<Database {self.name!r}>"
