"""Figures of the models that are loaded, for Prometheus and for the Open Inference Protocol."""

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from superduper.serving.figures import ModelState
from superduper.serving.model_hosts import ModelHosts
from superduper.serving.times import Times

# The protocol's words for our stages.
_COMPUTE = (
    ("compute_input", "preprocess"),
    ("compute_infer", "forward"),
    ("compute_output", "postprocess"),
)


class ModelFigures:
    """Asks the hosts when somebody asks for figures."""

    def __init__(self, hosts: ModelHosts) -> None:
        self._hosts = hosts

    def collect(self) -> Iterator[Metric]:
        """The figures, as the library asks for them."""
        stages = HistogramMetricFamily(
            "superduper_model_stage_seconds",
            "Time of a request in the queue, of a batch in the other stages.",
            labels=("model", "stage"),
        )
        rows = HistogramMetricFamily(
            "superduper_model_batch_rows", "Rows of a batch.", labels=("model",)
        )
        waiting = GaugeMetricFamily(
            "superduper_model_waiting", "Requests that wait for their turn.", labels=("model",)
        )
        memory = GaugeMetricFamily(
            "superduper_model_memory_bytes", "Memory of the model's process.", labels=("model",)
        )
        failed = CounterMetricFamily(
            "superduper_model_failed", "Requests that ended with an error.", labels=("model",)
        )
        setbacks = CounterMetricFamily(
            "superduper_model_setbacks",
            "Times the model's process died, hung, or could not load it.",
            labels=("model",),
        )
        given_up = GaugeMetricFamily(
            "superduper_model_given_up",
            "1 while the model failed too often and is not started.",
            labels=("model",),
        )
        left = CounterMetricFamily(
            "superduper_model_left_to_plain",
            "Batches that a faster form of the model left to the plain one.",
            labels=("model",),
        )
        states = self._hosts.states()
        for state in states:
            left.add_metric((state.id,), state.figures.left_to_plain)
            for stage, times in state.figures.stages.items():
                stages.add_metric((state.id, stage), times.buckets(), times.total)
            rows.add_metric((state.id,), state.figures.rows.buckets(), state.figures.rows.total)
            waiting.add_metric((state.id,), state.waiting)
            memory.add_metric((state.id,), state.memory_mb << 20)
            failed.add_metric((state.id,), state.figures.failed)
            setbacks.add_metric((state.id,), state.figures.setbacks)
            given_up.add_metric((state.id,), 1 if state.trouble else 0)
        own = (stages, rows, waiting, memory, failed, setbacks, given_up, left)
        yield from (*own, *_forms(states))


def _forms(states: list[ModelState]) -> tuple[Metric, ...]:
    """Of the models for which a faster form is wished: what serves, and how the forms did."""
    serves = GaugeMetricFamily(
        "superduper_model_form",
        "1 for the form that serves, beside the one that is asked for.",
        labels=("model", "asked", "serves"),
    )
    labels = ("model", "form")
    difference = GaugeMetricFamily(
        "superduper_model_form_difference",
        "Largest difference of a form's numbers from the plain one's, as a part of the largest.",
        labels=labels,
    )
    speedup = GaugeMetricFamily(
        "superduper_model_form_speedup", "How many times as fast as the plain form.", labels=labels
    )
    for state in states:
        if state.form is None:
            continue
        serves.add_metric((state.id, state.form["asked"], state.form["serves"]), 1)
        for trial in state.form["tried"]:
            for family, value in (
                (difference, trial["difference"]),
                (speedup, trial["speedup"]),
            ):
                if value is not None:
                    family.add_metric((state.id, trial["form"]), value)
    return serves, difference, speedup


def statistics_of(model: str, state: ModelState) -> dict[str, Any]:
    """The statistics of a model as the protocol's extension has them."""
    figures, queue = state.figures, state.figures.stages["queue"]
    parts = {name: _duration(figures.stages[stage]) for name, stage in _COMPUTE}
    spent = sum(times.total for times in figures.stages.values())
    return {
        "name": model,
        "version": state.id.rpartition("@")[2],
        "inference_count": int(figures.rows.total),
        "execution_count": figures.rows.count,
        "inference_stats": {
            "success": {"count": queue.count - figures.failed, "ns": int(spent * 1e9)},
            "fail": {"count": figures.failed, "ns": 0},
            "queue": _duration(queue),
            **parts,
        },
        "batch_stats": [],
    }


def _duration(times: Times) -> dict[str, int]:
    return {"count": times.count, "ns": int(times.total * 1e9)}
