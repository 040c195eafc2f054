"""Figures of several processes as those of one server: added up, whichever process is asked."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

Told = dict[str, Any]

# One process is as old as the oldest; each may open that many files. All others are added up.
SMALLEST = ("process_start_time_seconds", "process_max_fds")
GROWING = ("counter", "histogram")


class Collected:
    """Metrics in the form of what they are collected from."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        yield from self._metrics


def told(metrics: Iterable[Metric]) -> list[Told]:
    """Metrics as they travel between processes."""
    return [
        {
            "name": metric.name,
            "help": metric.documentation,
            "type": metric.type,
            "samples": [
                [each.name, list(each.labels.items()), each.value] for each in metric.samples
            ],
        }
        for metric in metrics
    ]


def growing(metrics: list[Told]) -> list[Told]:
    """Those that never fall: they still count when the process that told of them has ended."""
    return [metric for metric in metrics if metric["type"] in GROWING]


def merged(tellers: Iterable[list[Told]]) -> list[Told]:
    """The metrics of all of them, added up."""
    found: dict[str, Told] = {}
    values: dict[str, dict[Any, float]] = {}
    for metric in (metric for metrics in tellers for metric in metrics):
        name = metric["name"]
        found.setdefault(name, metric)
        samples = values.setdefault(name, {})
        for sample, labels, value in metric["samples"]:
            key = sample, tuple(map(tuple, labels))
            before = samples.get(key)
            if before is None:
                samples[key] = value
            else:
                samples[key] = min(before, value) if sample in SMALLEST else before + value
    return [
        {**metric, "samples": [[*key, value] for key, value in values[name].items()]}
        for name, metric in found.items()
    ]


def metrics_of(tellings: list[Told]) -> list[Metric]:
    """The metrics that have travelled."""
    metrics = []
    for telling in tellings:
        metric = Metric(telling["name"], telling["help"], telling["type"])
        for sample, labels, value in telling["samples"]:
            metric.add_sample(sample, dict(labels), value)
        metrics.append(metric)
    return metrics


def snapshot(registry: CollectorRegistry) -> list[Told]:
    """What a registry has at this moment."""
    return told(registry.collect())
