"""Apply a model to values: the one definition, used to validate, to fill and to answer over HTTP.

    value -> preprocess -> sample -> collate -> forward -> unbatch -> row -> postprocess -> output

What counts as a model, in this order:

- an object with `forward` (an `nn.Module`): called with a batch, in evaluation mode, no gradients;
- an object with `predict` (a scikit-learn estimator): given all samples at once as one numpy array,
  or as a list where they are no numbers;
- a function (or method, built-in, partial): called with one sample at a time, as a user of a
  function expects;
- any other object with `__call__`: called with a batch.

Where the model, or `postprocess`, yields, the output is the list of all pieces; `pieces` gives them
one by one.

A value that fails does so alone. A row's output does not depend on the rows beside it: rows whose
samples differ in form or datatype run in batches of their own. Runs where user code may run.
"""

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from superduper.errors import InvalidInput
from superduper.serving.estimators import estimate, has_chances
from superduper.serving.failures import CONTAINED, Failure, contain, describe_error, each
from superduper.serving.rows import Outcome, Pieces, Row, chance, marked, plain, split, to_outcome

if TYPE_CHECKING:
    import torch

    from superduper.serving.domain import Domain

Style = Literal["batch", "estimator", "function"]


def style_of(model: Any) -> Style:
    """How a model is applied.

    Raises InvalidInput for what cannot be a model.
    """
    if isinstance(model, type):
        raise InvalidInput(f"{model.__name__} is a class: register an instance of it")
    if callable(getattr(model, "forward", None)):
        return "batch"
    if callable(getattr(model, "predict", None)):
        return "estimator"
    if inspect.isroutine(model) or isinstance(model, functools.partial):
        return "function"
    if callable(model):
        return "batch"
    raise InvalidInput(
        f"a {type(model).__name__} is not a model: it needs forward, predict or __call__"
    )


class Place(Protocol):
    """Where is said which value's own code runs: preprocess, a function or postprocess."""

    def put(self, number: int) -> None: ...

    def clear(self) -> None: ...


class Faster(Protocol):
    """A faster form of a module; `left` counts the batches that it left to the plain one."""

    left: int

    def __call__(self, batch: Any) -> Any: ...


class Predictor:
    """A model with what comes before and after it.

    `preprocess` and `postprocess` win over the model's own methods of these names. A module is
    moved to `device`, anything else computes where it likes; its training mode is after each call
    what it was before. With a `domain` it is told of each outcome whose sample is not in it:
    `"out_of_domain"`, see `Domain.outside`.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Any], Any] | None = None,
        postprocess: Callable[[Any], Any] | None = None,
        device: "str | torch.device" = "cpu",
        domain: "Domain | None" = None,
        place: Place | None = None,
    ) -> None:
        self.model = model
        self.style = style_of(model)
        self.domain = domain
        self._preprocess = preprocess or _method(model, "preprocess")
        self._preprocess_batch = None if preprocess else _method(model, "preprocess_batch")
        self._postprocess = postprocess or _method(model, "postprocess")
        self._postprocess_batch = None if postprocess else _method(model, "postprocess_batch")
        self._confidence = _method(model, "confidence")
        self._runner_up = _method(model, "runner_up")
        self._place = place
        self.seconds: dict[str, float] = {}
        """How long each stage of the last prediction took."""
        self.faster: Faster | None = None
        """Another form of a module, called with batches in its place; see `forms`."""
        self.is_module = is_module(model)
        self._is_settled = False
        self.device = device if self.is_module else "cpu"
        if self.is_module:
            model.to(device)

    def settle(self) -> None:
        """From now on nothing but predictions are made in this process.

        A module is put into evaluation mode, and gradients are not kept, once and for all.
        """
        if self.is_module:
            self.model.eval()
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_grad_enabled(False)
            self._is_settled = True
            if self.style == "batch":  # the first answer need not wait for what torch does once
                one = self._collate.place(torch.ones(1, 1), self.device, torch.float32)
                torch.nn.functional.linear(one, one)

    @property
    def has_confidence(self) -> bool:
        """Whether outputs come with a confidence."""
        in_estimator = self.style == "estimator" and has_chances(self.model)
        return self._confidence is not None or in_estimator

    def predict(self, values: Sequence[Any]) -> list[Outcome]:
        """One outcome for each value, in order. No value makes it raise."""
        with self.evaluating():
            samples = self._timed("preprocess", lambda: self.samples(values))
            outside = None if self.domain is None else self.domain.outside(samples)
            rows = self._timed("forward", lambda: self._rows(samples))
            outcomes: list[Outcome] = self._timed("postprocess", lambda: self._finished(rows))
            return outcomes if outside is None else marked(outcomes, outside)

    def explain(self, value: Any) -> dict[str, Any]:
        """One prediction with what was in between, as far as it came.

        `given` is what the model was given, `returned` what it gave back for this row; then the
        outcome, with `failed_at` beside an `error`.
        """
        told: dict[str, Any] = {}
        with self.evaluating():
            samples = self._timed("preprocess", lambda: self.samples([value]))
            if isinstance(samples[0], Failure):
                return {"failed_at": "preprocess", "error": samples[0].error}
            told["given"] = samples[0]
            if self.domain is not None:
                [told] = marked([told], self.domain.outside(samples))
            rows = self._timed("forward", lambda: self._rows(samples))
            if isinstance(rows[0], Failure):
                return {**told, "failed_at": "forward", "error": rows[0].error}
            told["returned"] = rows[0].output
            [outcome] = self._timed("postprocess", lambda: self._finished(rows))
        where = {"failed_at": "postprocess"} if "error" in outcome else {}
        return {**told, **where, **outcome}

    def pieces(self, value: Any) -> Iterator[Outcome]:
        """An outcome for each piece that the model yields, then none; one with an error is last.

        What yields is `forward`, the function, or `postprocess`; of any other model there is one.
        """
        steps = self._steps(value)
        while True:
            with self.evaluating():  # not across a yield: in between the model answers others
                outcome = next(steps, None)
            if outcome is None:
                return
            yield outcome

    def _steps(self, value: Any) -> Iterator[Outcome]:
        [sample] = self.samples([value])
        if isinstance(sample, Failure):
            yield {"error": sample.error}
            return
        try:
            for row in self._returned(sample):
                for output in self._finished_pieces(row):
                    yield {"value": plain(output)}
        except CONTAINED as error:
            yield {"error": describe_error(error)}

    def _returned(self, sample: Any) -> Iterator[Any]:
        """What the model gives back for one sample, piece by piece."""
        if self.style == "estimator":
            yield estimate(self.model, [sample])[0].output
            return
        if self.style == "function":
            made = self.model(sample)
            yield from made if isinstance(made, Iterator) else (made,)
            return
        output = self._call([sample])
        for each_batch in output if isinstance(output, Iterator) else (output,):
            yield self._collate.unbatch(each_batch, 1)[0]

    def _finished_pieces(self, row: Any) -> Iterator[Any]:
        if self._postprocess_batch is not None:
            yield split(self._postprocess_batch([row]), 1, "postprocess_batch")[0]
            return
        made = row if self._postprocess is None else self._postprocess(row)
        yield from made if isinstance(made, Iterator) else (made,)

    def _each(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """`function` of each item, which is told to who waits for it."""
        if self._place is None:
            return each(function, items)
        made = []
        try:
            for position, item in enumerate(items):
                self._place.put(position)
                made += each(function, [item])
        finally:  # nothing later is to be blamed on this one
            self._place.clear()
        return made

    def _timed(self, stage: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        made = call()
        self.seconds[stage] = time.perf_counter() - began
        return made

    def outcomes(self, output: Any, count: int) -> list[Outcome]:
        """One outcome for each row of what the model returned for a batch of `count` samples.

        For who has called the model already, as validation does. Raises WrongRows.
        """
        with self.evaluating():
            return self._finished([Row(row) for row in self._collate.unbatch(output, count)])

    @property
    def is_bare(self) -> bool:
        """Whether a batch of samples is all the model needs: nothing comes before or after it."""
        parts = (
            self._preprocess,
            self._preprocess_batch,
            self._postprocess,
            self._postprocess_batch,
            self._confidence,
        )
        return self.style == "batch" and not any(parts)

    def forward_stacked(self, samples: Any) -> Any:
        """What a bare model makes of tensors that are one batch already; may raise anything."""
        with self.evaluating():
            given = self._collate.given_sample(samples, self._weights)
            batch = self._collate.place(given, self.device, self._weights.dtype)
            return self._timed("forward", lambda: self._run(batch))

    # Before the model ------------------------------------------------------------------------

    def samples(self, values: Sequence[Any]) -> list[Any]:
        """A sample for each value, a Failure where preprocess raises."""
        if self._preprocess_batch is not None:
            return contain(self._samples_at_once, values)
        return self._each(self.sample, values)

    def sample(self, value: Any) -> Any:
        """What the model is given for one value; raises what the user's preprocess raises."""
        if self._preprocess is None:
            return self._given(value)
        return self._ready(self._preprocess(value))

    def _samples_at_once(self, values: list[Any]) -> list[Any]:
        assert self._preprocess_batch is not None
        made = self._preprocess_batch(values)
        return [self._ready(row) for row in split(made, len(values), "preprocess_batch")]

    def _ready(self, sample: Any) -> Any:
        return self._collate.to_tensors(sample) if self.style == "batch" else sample

    def _given(self, value: Any) -> Any:
        if self.style == "batch":
            return self._collate.given_sample(value, self._weights)
        if self.style == "estimator" and isinstance(value, Mapping):
            numbers = list(value.values())
            return numbers if all(isinstance(x, int | float) for x in numbers) else value
        return value

    # The model -------------------------------------------------------------------------------

    def _rows(self, samples: list[Any]) -> list[Any]:
        if self.style == "function":
            return self._each(lambda sample: Row(self.model(sample)), samples)
        if self.style == "estimator":
            return contain(lambda part: estimate(self.model, part), samples)
        return self._forward_by_form(samples)

    def _forward_by_form(self, samples: list[Any]) -> list[Any]:
        groups: dict[Any, list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault(self._collate.form(sample), []).append(index)
        rows: list[Any] = [None] * len(samples)
        for indices in groups.values():
            made = contain(self._forward, [samples[index] for index in indices])
            for index, row in zip(indices, made, strict=True):
                rows[index] = row
        return rows

    def _forward(self, samples: list[Any]) -> list[Any]:
        output, count = self._call(samples), len(samples)
        if isinstance(output, Iterator):
            parts = [self._collate.unbatch(each_batch, count) for each_batch in output]
            return [Row(Pieces(part[index] for part in parts)) for index in range(count)]
        return [Row(row) for row in self._collate.unbatch(output, count)]

    def _call(self, samples: list[Any]) -> Any:
        return self._run(self.batch(samples))

    def batch(self, samples: list[Any]) -> Any:
        """Samples of one form as the model is given them."""
        collated = self._collate.collate(samples)
        return self._collate.place(collated, self.device, self._weights.dtype)

    def _run(self, batch: Any) -> Any:
        return self.run_plain(batch) if self.faster is None else self.faster(batch)

    def run_plain(self, batch: Any) -> Any:
        """What the model itself makes of such a batch; may raise anything."""
        return self._collate.call(self.model, batch)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Meanwhile a module is in evaluation mode, and gradients are not kept."""
        torch = sys.modules.get("torch")
        if torch is None or self._is_settled:
            yield
            return
        training = [x for x in self.model.modules() if x.training] if self.is_module else []
        if training:
            self.model.eval()
        try:
            # Not inference_mode: it is no faster, and a module that keeps a tensor made in it (a
            # table of positions, say) could not be trained any more in the process that validates.
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True

    # torch is slow to import, and estimators and functions can do without it.
    @functools.cached_property
    def _collate(self) -> Any:
        from superduper.serving import collate

        return collate

    @functools.cached_property
    def _weights(self) -> Any:
        return self._collate.Weights.of(self.model)

    # After the model -------------------------------------------------------------------------

    def _finished(self, made: list[Any]) -> list[Outcome]:
        rows = each(self._with_confidence, made)
        outputs = self._outputs(rows)
        return [to_outcome(row, output) for row, output in zip(rows, outputs, strict=True)]

    def _with_confidence(self, row: Row) -> Row:
        confidence = row.confidence
        if isinstance(row.output, Pieces):  # of which each would have its own
            return row
        if self._confidence is not None:
            confidence = self._confidence(row.output)
        second = None if self._runner_up is None else plain(self._runner_up(row.output))
        return Row(row.output, None if confidence is None else chance(confidence), second)

    def _outputs(self, rows: list[Any]) -> list[Any]:
        if self._postprocess_batch is not None:
            return contain(self._finish_at_once, rows)
        return self._each(self._finish, rows)

    def _finish(self, row: Row) -> Any:
        if isinstance(row.output, Pieces):
            return [plain(made) for piece in row.output for made in self._finished_pieces(piece)]
        return plain(row.output if self._postprocess is None else self._postprocess(row.output))

    def _finish_at_once(self, rows: list[Row]) -> list[Any]:
        assert self._postprocess_batch is not None
        if any(isinstance(row.output, Pieces) for row in rows):
            return [self._finish(row) for row in rows]
        made = self._postprocess_batch([row.output for row in rows])
        return [plain(output) for output in split(made, len(rows), "postprocess_batch")]


def _method(model: Any, name: str) -> Callable[..., Any] | None:
    # A layer of that name is a part of forward, not a method for us.
    method = getattr(model, name, None)
    return method if callable(method) and not is_module(method) else None


def is_module(model: Any) -> bool:
    """Whether it is a torch module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)
