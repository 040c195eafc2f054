"""What can be asked of whatever predicts: handles on a model and on an imputation have it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, TypeVar

from superduper import commands
from superduper.command import build
from superduper.commands import Transport
from superduper.display import Table
from superduper.errors import SuperduperError, TimedOut, UserCodeError
from superduper.fields.codec import decode, encode

E = TypeVar("E", bound=commands.OnEither)

POLL_SECONDS = 0.25
DOCUMENT_COLUMNS = ("document", "value", "confidence", "error")


class Predicting:
    """Something that predicts, by its name in a collection."""

    kind: ClassVar[str]

    def __init__(self, transport: Transport, collection: str, name: str) -> None:
        self._transport = transport
        self.collection = collection
        self.name = name

    def _about(self, command: type[E], **fields: Any) -> Any:
        return self._transport.send(self._command(command, **fields))

    def _command(self, command: type[E], **fields: Any) -> E:
        placed = {"collection": self.collection, "kind": self.kind, "name": self.name}
        return build(command, **placed, **fields)

    def _predict(self, inputs: list[Any], version: int | None) -> Any:
        raise NotImplementedError

    def predict(self, value: Any) -> Any:
        """The live version's output for a value, or for each of a list of values."""
        return outputs_of(self._predict(inputs_of(value), None), value)

    def predict_documents(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        ids: Sequence[Any] | None = None,
        key: str | Sequence[str] | None = None,
        version: int | None = None,
        limit: int = 100,
    ) -> Table:
        """Outputs for documents, by `ids` or by filter; writes nothing.

        `key` says which field a model reads, or which fields; an imputation knows. Rows have
        `document` (the `_id`), `value`, `confidence` and `error`: in the order of the ids, else in
        that of `_id`.
        """
        wanted: dict[str, Any] = {"key": key, "version": version, "limit": limit}
        if ids is not None:
            wanted["ids"] = [encode(each) for each in ids]
        if filter is not None or ids is None:
            wanted["filter"] = encode(filter or {})
        found = self._about(commands.PredictDocuments, **wanted)
        return Table(map(decoded, found["documents"]), DOCUMENT_COLUMNS)

    def stream(self, value: Any, version: int | None = None) -> Iterator[Any]:
        """One prediction piece by piece, as the model yields them; another model gives one piece.

        Leaving the loop ends the work. Raises UserCodeError where the model fails.
        """
        command = self._command(commands.StreamPrediction, input=encode(value), version=version)
        with closing(self._transport.stream(command)) as rows:
            for row in rows:
                if "end" in row:
                    return
                yield decode(row["piece"])

    def predict_later(
        self,
        values: Sequence[Any] | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
        key: str | Sequence[str] | None = None,
        version: int | None = None,
    ) -> "PredictionJob":
        """Have a worker predict many values, or the documents that match a filter: a job.

        What is live now answers them all. The outputs are kept for SUPERDUPER_OUTPUTS_HOURS.
        """
        wanted: dict[str, Any] = {"key": key, "version": version}
        if values is not None:
            wanted["inputs"] = [encode(each) for each in values]
        if filter is not None:
            wanted["filter"] = encode(filter)
        return PredictionJob(self._transport, self._about(commands.PredictLater, **wanted)["job"])

    def explain(self, value: Any, version: int | None = None) -> dict[str, Any]:
        """One prediction with what was in between.

        `given` is what the model was given after preprocess, `returned` what it gave back before
        postprocess (each with type, datatype, shape and, where it can be shown, value); then
        `value`, `confidence`, `seconds` of each stage, `version`. A failure is told, not raised:
        `failed_at` names the stage, `error` has type and message.
        """
        story: dict[str, Any] = decode(
            self._about(commands.ExplainPrediction, input=encode(value), version=version)
        )
        return story

    def traffic(self) -> dict[str, Any]:
        """Which versions answer what servers are asked, with `counts` of how they have done."""
        found: dict[str, Any] = self._about(commands.ShowTraffic)
        return found

    def set_traffic(
        self,
        canary: Mapping[str, Any] | None = None,
        shadow: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Give other versions a share of what servers are asked; with neither, none any more.

        `canary={"version": 3, "share": 0.1}` answers a tenth of the requests. `shadow={"version":
        3}` is asked as well (`share` of the requests, all if none is told), and its answers are
        only compared; numbers that differ by no more than `tolerance` (1e-6) are the same.
        """
        wanted = {"canary": canary, "shadow": shadow}
        sent = {side: dict(told) for side, told in wanted.items() if told is not None}
        found: dict[str, Any] = self._about(commands.SetTraffic, **sent)
        return found


class Model(Predicting):
    """A registered model, to be asked."""

    kind = "model"

    def _predict(self, inputs: list[Any], version: int | None) -> Any:
        return self._transport.send(
            build(
                commands.Predict,
                collection=self.collection,
                name=self.name,
                inputs=inputs,
                version=version,
            )
        )

    def predict(self, value: Any, version: int | None = None) -> Any:
        """A version's output for a value, or for each of a list of values; else the live one's."""
        return outputs_of(self._predict(inputs_of(value), version), value)

    def form(self) -> dict[str, Any]:
        """The form that is wished for; `report` says which serves, and how each one tried did."""
        return self._of_form(commands.ShowForm)

    def set_form(
        self,
        form: str,
        inputs: Sequence[Any] | None = None,
        *,
        tolerance: float = 0.01,
        agreement: float | None = None,
    ) -> dict[str, Any]:
        """Have servers answer with a faster form, if it agrees with the plain one and is faster.

        `form` is "bf16", "int8", "onnx" or "compiled"; "auto" takes the fastest that agrees,
        "plain" is the way back. They are compared on `inputs` (at most 256; else on those given
        before) and the sample of `create_model`. `tolerance` is the largest difference of two
        numbers, as a part of the largest number in that place; `agreement` the share of inputs
        whose labels must be the same (0.99): if told, rows of numbers are taken for scores, and the
        place of the largest for a label. Answers as `form()`.
        Raises InvalidInput if there is nothing to compare on.
        """
        wanted: dict[str, Any] = {"form": form, "tolerance": tolerance, "agreement": agreement}
        if inputs is not None:
            wanted["inputs"] = [encode(each) for each in inputs]
        return self._of_form(commands.SetForm, **wanted)

    def _of_form(self, command: type[commands.OnCollection], **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._transport.send(
            build(command, collection=self.collection, name=self.name, **fields)
        )
        return found

    def __repr__(self) -> str:
        return f"<Model {self.name!r} of {self.collection!r}>"


class PredictionJob:
    """Predictions that a worker makes, and their rows as they come."""

    def __init__(self, transport: Transport, id: str) -> None:
        self._transport = transport
        self.id = id

    @property
    def status(self) -> str:
        """queued, running, succeeded, failed or cancelled."""
        return str(self._show()["state"])

    def rows(self, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """One row for each input and in order, as soon as it is there.

        A row has `value` and, where there is one, `confidence`, or else `error`; those of a filter
        have `document` too, and are in the order of `_id`. Raises the error that ended the job,
        NotFound once the outputs have expired, TimedOut if no more came for `timeout` seconds.
        """
        first, heard_at = 0, time.monotonic()
        while True:
            page = self._transport.send(build(commands.ListOutputs, id=self.id, first=first))
            yield from map(decoded, page["rows"])
            if page["rows"]:
                first, heard_at = page["next"], time.monotonic()
                continue
            if page["state"] == "succeeded":
                return
            if page["state"] in ("failed", "cancelled"):
                raise self._failure()
            if timeout is not None and time.monotonic() - heard_at > timeout:
                raise TimedOut(
                    f"job {self.id} is {page['state']} and gave no row for {timeout:g} s"
                )
            time.sleep(POLL_SECONDS)

    def cancel(self) -> None:
        """Ask it to stop."""
        self._transport.send(build(commands.CancelJob, id=self.id))

    def _show(self) -> dict[str, Any]:
        found: dict[str, Any] = self._transport.send(build(commands.ShowJob, id=self.id))
        return found

    def _failure(self) -> SuperduperError:
        job = self._show()
        told = (job["error"] or {}).get("message") or f"it was {job['state']}"
        return UserCodeError(f"job {self.id}: {told}")

    def __repr__(self) -> str:
        return f"<PredictionJob {self.id} {self.status}>"


def decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its value as it went in."""
    return {**row, "value": decode(row["value"])} if "value" in row else dict(row)


def inputs_of(value: Any) -> list[Any]:
    """What is sent to have a value predicted, or each of a list of values."""
    return [encode(each) for each in (value if isinstance(value, list) else [value])]


def outputs_of(told: Mapping[str, Any], value: Any) -> Any:
    """The outputs in an answer: a list for a list of values, else the one output.

    Raises UserCodeError with the first error if the model failed on any of them.
    """
    errors = told.get("errors") or {}
    if errors:
        index, error = next(iter(errors.items()))
        raise UserCodeError(f"input {index}: {error}")
    outputs = [decode(output) for output in told["outputs"]]
    return outputs if isinstance(value, list) else outputs[0]
