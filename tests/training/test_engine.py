"""The engine learns, repeats itself, validates in evaluation mode, and goes on where it was."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from superduper.errors import InvalidInput, UserCodeError
from superduper.training.engine import Engine, Plan, Stage, evaluate
from superduper.training.graph import Graph, Node
from superduper.training.objective import Objective, Term
from superduper.training.optimizers import optimizer_of
from superduper.training.policies import BestWeights, NaNStop, Patience, Policy, StopRun
from superduper.training.sources import IndexSource, tensor_source
from superduper.training.weights import copy_of_state, weights_hash


class History(Policy):
    """Keeps what validation found."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.reason = ""

    def validation_finished(
        self, epoch: int, step: int, metrics: Mapping[str, float], train: Mapping[str, float]
    ) -> None:
        train = {f"train_{name}": value for name, value in train.items()}
        self.rows.append({"epoch": epoch, "step": step, **train, **metrics})

    def run_finished(self, reason: str) -> None:
        self.reason = reason

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = list(state["rows"])


def separable(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return {"x": x, "y": (x.sum(1) > 0).long()}


def network(seed: int = 1, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 2)
    )


def stage_of(
    module: torch.nn.Module,
    train: Mapping[str, torch.Tensor],
    valid: Mapping[str, torch.Tensor],
    *,
    loss: Any = None,
    optimizer: Any = "adam",
    lr: float = 0.01,
    batch_size: int = 16,
    max_epochs: int | None = 20,
    max_steps: int | None = None,
    seed: int = 3,
) -> Stage:
    graph = Graph([Node("model", module, ("x",), ("output",))])
    objective = Objective([Term("loss", loss or torch.nn.CrossEntropyLoss(), ("output", "y"))])
    return Stage(
        graph=graph,
        objective=objective,
        source=tensor_source(train, batch_size, seed),
        optimizers={"main": optimizer_of(optimizer, graph.parameters(), lr)},
        validation=tensor_source(valid, batch_size),
        max_epochs=max_epochs,
        max_steps=max_steps,
    )


def run(stage: Stage, *policies: Policy, seed: int = 3) -> History:
    history = History()
    Engine(Plan([stage], seed), [*policies, history]).run()
    return history


def accuracy(module: torch.nn.Module, data: Mapping[str, torch.Tensor]) -> float:
    with torch.no_grad():
        return float((module.eval()(data["x"]).argmax(1) == data["y"]).float().mean())


def test_it_learns_separable_data() -> None:
    module = network()
    history = run(stage_of(module, separable(400), separable(100, seed=9), max_epochs=30))
    assert accuracy(module, separable(100, seed=9)) > 0.95
    assert history.rows[-1]["loss"] < history.rows[0]["loss"] / 2
    assert [row["epoch"] for row in history.rows] == list(range(31))
    assert history.rows[-1]["step"] == 30 * 25
    assert history.reason == "all epochs are done"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    hashes = []
    for seed in (3, 3, 4):
        module = network(dropout=0.3)
        run(stage_of(module, separable(100), separable(20, 9), max_epochs=3, seed=seed), seed=seed)
        hashes.append(weights_hash(module.state_dict()))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    source = tensor_source(separable(50), 8, seed=5)
    first = torch.cat([batch.index for batch in source.batches(2)])
    again = torch.cat([batch.index for batch in source.batches(2, start=3)])
    assert torch.equal(first[24:], again)
    assert sorted(first.tolist()) == list(range(50))
    assert not torch.equal(first, torch.cat([batch.index for batch in source.batches(3)]))


def test_validation_runs_in_evaluation_mode_and_training_in_training_mode() -> None:
    class Watching(torch.nn.Linear):
        seen: list[tuple[bool, bool]] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    module = Watching(4, 2)
    module.eval()
    run(stage_of(module, separable(16), separable(16, 9), max_epochs=2))
    validated, trained = (False, False), (True, True)
    assert module.seen == [validated, trained, validated, trained, validated]


def test_batch_statistics_are_not_moved_by_validation() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    stage = stage_of(module, separable(32), separable(32, 9))
    before = torch.clone(module[0].running_mean)  # type: ignore[arg-type]
    evaluate(stage, stage.validation or stage.source)
    assert torch.equal(module[0].running_mean, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_last_batch_of_another_size_counts_for_what_it_is(reduction: str) -> None:
    data = separable(37)
    module = network().eval()
    loss = torch.nn.CrossEntropyLoss(reduction=reduction)
    stage = stage_of(module, data, data, loss=loss, batch_size=16)
    exact = torch.nn.functional.cross_entropy(module(data["x"]), data["y"]).item()
    assert evaluate(stage, stage.validation or stage.source)["loss"] == pytest.approx(
        exact, rel=1e-6
    )


def test_a_last_batch_of_one_record_can_be_joined_to_the_one_before() -> None:
    data = separable(33)
    source = IndexSource(33, lambda index: {"x": data["x"][index]}, 16, join_single=True)
    assert [batch.n for batch in source.batches(0)] == [16, 17]
    assert len(source) == 2
    assert [batch.n for batch in tensor_source(data, 16).batches(0)] == [16, 16, 1]


def test_early_stopping_ends_the_run_and_the_best_weights_come_back() -> None:
    module = network()
    stage = stage_of(
        module, separable(64), separable(64, 9), optimizer="sgd", lr=30.0, max_epochs=100
    )
    best = BestWeights("loss", False)
    stop = Patience("loss", False, patience=4)
    history = History()
    engine = Engine(Plan([stage], 3), [best, stop, history])
    engine.run()
    losses = [row["loss"] for row in history.rows]
    assert losses[-1] > min(losses)
    assert len(losses) == losses.index(min(losses)) + 5
    assert history.reason == "loss was not better for 4 epochs"
    best.restore(engine)
    assert best.best is not None and best.best["epoch"] == losses.index(min(losses))
    assert evaluate(stage, stage.validation or stage.source)["loss"] == pytest.approx(min(losses))


def test_a_metric_is_maximised() -> None:
    best = BestWeights("accuracy", True)
    module = network()
    engine = Engine(Plan([stage_of(module, separable(16), separable(16))], 1), [best])
    for epoch, value in enumerate([0.5, 0.9, 0.7, math.nan]):
        best.validation_finished(engine, epoch, epoch, {"accuracy": value, "loss": 1.0})
    assert best.best == {"epoch": 1, "step": 1, "accuracy": 0.9, "loss": 1.0}


def test_of_equal_metrics_the_lower_loss_is_better() -> None:
    stop = Patience("accuracy", True, patience=2)
    rows = [(0.9, 1.0), (0.9, 0.8), (0.9, 0.9), (0.8, 0.1)]
    waited = []
    for accuracy, loss in rows[:3]:
        stop.validation_finished({"accuracy": accuracy, "loss": loss})
        waited.append(stop.waited)
    assert waited == [0, 0, 1]
    with pytest.raises(StopRun):
        stop.validation_finished({"accuracy": rows[3][0], "loss": rows[3][1]})


def test_watching_what_nobody_measures_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot watch 'recall': validation measures loss"):
        run(stage_of(network(), separable(16), separable(16)), Patience("recall", True, 3))


def test_a_loss_that_is_no_number_fails_with_step_and_records() -> None:
    data = separable(64)
    data["x"][41, 0] = math.nan
    stage = stage_of(network(), data, separable(16, 9))
    with pytest.raises(UserCodeError, match=r"became nan at step \d \(epoch 1\), on .*\b41\b"):
        run(replace(stage, describe=lambda index: str(index.tolist())), NaNStop())


def test_steps_are_counted_to_the_limit_and_the_part_of_an_epoch_is_validated() -> None:
    history = run(stage_of(network(), separable(64), separable(16, 9), max_steps=6))
    assert [(row["epoch"], row["step"]) for row in history.rows] == [(0, 0), (1, 4), (2, 6)]


def test_a_policy_takes_the_arguments_it_names_and_every_policy_hears_of_a_stop() -> None:
    heard: list[str] = []

    class Stopping(Policy):
        def step_finished(self, step: int) -> None:
            if step == 2:
                raise StopRun("enough")

    class Hearing(Policy):
        def step_finished(self, **arguments: Any) -> None:
            heard.append(f"step {arguments['step']} of {arguments['batch'].n}")

        def epoch_finished(self, train: Mapping[str, float], epoch: int) -> None:
            heard.append(f"epoch {epoch} {sorted(train)}")

        def run_finished(self) -> None:
            heard.append("end")

    run(stage_of(network(), separable(64), separable(16, 9)), Stopping(), Hearing())
    assert heard == ["step 1 of 16", "step 2 of 16", "epoch 1 ['loss']", "end"]


def test_an_exception_in_a_policy_fails_the_run() -> None:
    class Broken(Policy):
        def epoch_started(self) -> None:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run(stage_of(network(), separable(16), separable(16)), Broken())


@pytest.mark.parametrize("stopped_at", [1, 4, 6, 7, 11])
def test_a_run_that_goes_on_later_ends_as_one_that_never_stopped(stopped_at: int) -> None:
    def fresh() -> tuple[torch.nn.Module, History, Engine]:
        module, history = network(dropout=0.4), History()
        policies = [BestWeights("loss", False), Patience("loss", False, 50), history]
        stage = stage_of(module, separable(60), separable(20, 9), max_epochs=4)
        return module, history, Engine(Plan([stage], 3), policies)

    class Snapshot(Policy):
        state: dict[str, Any]

        def step_finished(self, engine: Engine, step: int) -> None:
            if step == stopped_at:
                self.state = copied(engine.state_dict())

    straight, history, engine = fresh()
    engine.run()
    snapshot = Snapshot()
    _, _, first = fresh()
    first = Engine(first.plan, [*first.policies, snapshot])
    first.run()
    torch.rand(7)  # other draws in between change nothing
    resumed, history_2, second = fresh()
    snapshot.state["policies"] = snapshot.state["policies"][:-1]
    second.load_state_dict(snapshot.state)
    second.run()
    assert weights_hash(resumed.state_dict()) == weights_hash(straight.state_dict())
    assert history_2.rows == history.rows


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [copied(each) for each in value]
    return value


def test_a_finished_run_called_again_trains_nothing() -> None:
    module = network()
    engine = Engine(Plan([stage_of(module, separable(32), separable(16, 9), max_epochs=2)], 3))
    engine.run()
    before = weights_hash(module.state_dict())
    engine.run()
    assert weights_hash(module.state_dict()) == before


def test_nodes_see_what_earlier_nodes_made_and_a_missing_input_is_named() -> None:
    first = Node("encode", torch.nn.Linear(4, 3), ("x",), ("code",))
    second = Node("decode", torch.nn.Linear(3, 4), ("code",), ("output",))
    graph = Graph([first, second])
    assert sorted(graph({"x": torch.zeros(2, 4)})) == ["code", "output", "x"]
    with pytest.raises(InvalidInput, match=r"node 'decode' needs 'code'.*there are \['x'\]"):
        Graph([second, first])({"x": torch.zeros(2, 4)})


@pytest.mark.parametrize("name", ["Adam", "adamw", "SGD", "RMSprop", "lbfgs"])
def test_optimizers_are_found_by_name_in_any_case(name: str) -> None:
    module = network()
    stage = stage_of(module, separable(64), separable(16, 9), optimizer=name, max_epochs=3)
    history = run(stage)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]


def test_an_optimizer_takes_arguments_and_its_own_learning_rate_wins() -> None:
    spec = {"name": "sgd", "arguments": {"momentum": 0.9, "lr": 0.5}}
    optimizer = optimizer_of(spec, network().parameters(), lr=0.1)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("spec", "module", "message"),
    [
        ("adamm", torch.nn.Linear(1, 1), "no optimizer 'adamm' in torch.optim; there are: .*adamw"),
        ("Optimizer", torch.nn.Linear(1, 1), "no optimizer 'Optimizer'"),
        ({"name": "sgd", "arguments": {"speed": 1}}, torch.nn.Linear(1, 1), "'sgd' refused.*speed"),
        ("adam", torch.nn.ReLU(), "no parameters to train: leave out `loss`"),
    ],
)
def test_an_optimizer_that_cannot_be_made(spec: Any, module: torch.nn.Module, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        optimizer_of(spec, module.parameters(), lr=0.1)


def test_a_loss_that_depends_on_no_parameter_is_refused() -> None:
    stage = stage_of(
        network(), separable(16), separable(16), loss=lambda output, y: output.detach().sum()
    )
    with pytest.raises(InvalidInput, match="does not depend on any parameter"):
        run(stage)


def test_tied_weights_are_kept_under_both_names() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module[1].weight = module[0].weight
    copy = copy_of_state(module)
    assert torch.equal(copy["0.weight"], copy["1.weight"])
    assert copy["0.weight"].data_ptr() != copy["1.weight"].data_ptr()


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_sd_early_stop(patience: int) -> None:
    """The rule at the beginning: end when the best of the last n is not the best of all.

    With values of which no two are equal, `Patience` stops after the same validation.
    """
    generator = numpy.random.default_rng(patience)
    for _ in range(200):
        values = generator.permutation(20).tolist()
        by_rule = next(
            (n for n in range(patience + 1, 21) if max(values[n - patience : n]) < max(values[:n])),
            None,
        )
        policy, stopped = Patience("score", True, patience), None
        for n, value in enumerate(values, 1):
            try:
                policy.validation_finished(metrics={"score": value})
            except StopRun:
                stopped = n
                break
        assert stopped == by_rule


def test_no_patience_at_all_is_refused() -> None:
    with pytest.raises(InvalidInput, match="patience must be at least 1 validation, not 0"):
        Patience("loss", False, 0)


def test_an_equal_value_is_better_only_with_a_lower_loss() -> None:
    """Where the rule would wait for ever on a value that stays, patience ends."""
    policy = Patience("accuracy", True, 2)
    for loss in (0.9, 0.8, 0.7, 0.7):
        policy.validation_finished(metrics={"accuracy": 1.0, "loss": loss})
    with pytest.raises(StopRun, match="not better for 2 epochs"):
        policy.validation_finished(metrics={"accuracy": 1.0, "loss": 0.7})
