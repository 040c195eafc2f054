"""Many models in one process: who is kept, who has to go, and that nobody loses a request."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import torch

from superduper.errors import ChildDied, NotReady, TimedOut
from superduper.imputations.hosting import open_hosts
from superduper.serving.hosts import Hosts
from superduper.store.registry import Registry
from tests.waiting import until

SOON = 60.0


class Times(torch.nn.Module):
    """A multiple of its input; 13 ends the process."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 13).any()):
            import os

            os._exit(1)
        while bool((x == 14).any()):
            pass
        return x * self.factor


@pytest.fixture
def hosts(registry: Registry) -> Iterator[Hosts]:
    hosts = open_hosts(registry, max_hosts=2)
    yield hosts
    hosts.close()


@pytest.fixture
def children() -> Callable[[], set[int]]:
    """The numbers of the model processes that this test has running."""

    def forks() -> set[int]:
        servers = [one for one in psutil.Process().children() if is_fork_server(one)]
        return {fork.pid for server in servers for fork in server.children() if is_running(fork)}

    before = forks()
    return lambda: forks() - before


def is_fork_server(process: psutil.Process) -> bool:
    return "superduper.jobs.fork_server_main" in process.cmdline()


def is_running(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def test_the_least_recently_used_model_goes(
    hosts: Hosts, register: Callable[..., Any], children: Callable[[], set[int]]
) -> None:
    models = {factor: register(f"m{factor}", Times(factor)) for factor in (1, 2, 3)}
    for factor in (1, 2, 1, 3):
        assert hosts.predict(models[factor], [2.0]) == [{"value": 2.0 * factor}]
    until(lambda: len(children()) == 2, seconds=SOON)
    before = children()
    assert hosts.predict(models[1], [1.0], timeout=20) == [{"value": 1.0}]
    assert children() == before, "model 1 had been kept"
    assert hosts.predict(models[2], [1.0], timeout=20) == [{"value": 2.0}]


def test_what_takes_too_much_memory_goes(
    registry: Registry, register: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_MODELS_MEMORY_MB", "1")
    hosts = open_hosts(registry)
    models = {factor: register(f"m{factor}", Times(factor)) for factor in (1, 2)}
    for factor in (1, 2):
        assert hosts.predict(models[factor], [2.0]) == [{"value": 2.0 * factor}]
    assert [state.id for state in hosts.states()] == [models[2].id]
    assert hosts.states()[0].memory_mb > 1
    hosts.close()


def test_models_that_are_loaded_at_once_stay_within_the_memory(
    registry: Registry, register: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_MODELS_MEMORY_MB", "1")
    hosts = open_hosts(registry)
    models = [register(f"m{factor}", Times(factor)) for factor in (1, 2, 3)]
    futures = [hosts.submit(model, [2.0]) for model in models]
    assert len(hosts.states()) == 3, "none is known to be too large"
    assert [future.result(SOON)[0]["value"] for future in futures] == [2.0, 4.0, 6.0]
    until(lambda: [state.id for state in hosts.states()] == [models[2].id], seconds=SOON)
    hosts.close()


def test_sixty_four_threads_get_their_own_answers(
    hosts: Hosts, register: Callable[..., Any]
) -> None:
    models = [register(f"m{factor}", Times(factor)) for factor in (1, 2)]

    def ask(thread: int) -> None:
        for step in range(10):
            factor, value = 1 + (thread + step) % 2, 1000.0 + thread * 20 + step
            [outcome] = hosts.submit(models[factor - 1], [value]).result(SOON)
            assert outcome == {"value": value * factor}

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(64)))


def test_nobody_loses_a_request_when_models_crowd_each_other_out(
    hosts: Hosts, register: Callable[..., Any], children: Callable[[], set[int]]
) -> None:
    models = [register(f"m{factor}", Times(factor)) for factor in (1, 2, 3)]

    def ask(thread: int) -> None:
        for step in range(2):
            factor = 1 + (thread + step) % 3
            timeout = 30 if thread % 2 else None
            [outcome] = hosts.predict(models[factor - 1], [2.0], timeout)
            assert outcome == {"value": 2.0 * factor}

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    hosts.close()
    until(lambda: not children(), seconds=SOON)


def test_only_the_killers_request_fails(hosts: Hosts, register: Callable[..., Any]) -> None:
    model = register("m", Times(2))
    assert hosts.predict(model, [1.0]) == [{"value": 2.0}]
    futures = [hosts.submit(model, [value]) for value in (1.0, 13.0, 2.0, 3.0)]
    with pytest.raises(ChildDied):
        futures.pop(1).result(SOON)
    assert [future.result(SOON)[0]["value"] for future in futures] == [2.0, 4.0, 6.0]


def test_a_timeout_is_for_the_models_own_work(hosts: Hosts, register: Callable[..., Any]) -> None:
    model = register("m", Times(2))
    with pytest.raises(TimedOut):
        hosts.predict(model, [14.0], timeout=0.5)
    assert hosts.predict(model, [1.0], timeout=0.5) == [{"value": 2.0}]
    assert hosts.predict(model, [], timeout=0.5) == []


def test_a_batch_has_the_time_that_is_set(
    registry: Registry, register: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_PREDICT_TIMEOUT", "1")
    hosts = open_hosts(registry)
    model = register("m", Times(2))
    began = time.monotonic()
    with pytest.raises(TimedOut):
        hosts.submit(model, [14.0], timeout=SOON).result(SOON)
    assert time.monotonic() - began < 20
    assert hosts.predict(model, [1.0]) == [{"value": 2.0}]
    hosts.close()


def test_closing_ends_the_processes(
    hosts: Hosts, register: Callable[..., Any], children: Callable[[], set[int]]
) -> None:
    model = register("m", Times(2))
    assert hosts.predict(model, [1.0]) == [{"value": 2.0}]
    assert len(children()) == 1
    hosts.close()
    until(lambda: not children(), seconds=SOON)
    with pytest.raises(NotReady):
        hosts.predict(model, [1.0])
    with pytest.raises(NotReady):
        hosts.submit(model, [1.0])
