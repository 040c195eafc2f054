"""Training in 16 bits, on the device that is asked for, compiled: and measured in 32 bits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from superduper.devices import device_of
from superduper.errors import InvalidInput
from superduper.training import TorchModel, Trainer
from superduper.training.checkpoints import Checkpoints
from superduper.training.engine import Engine, Plan, Stage, evaluate
from superduper.training.graph import Graph, Node
from superduper.training.objective import Objective, Term
from superduper.training.optimizers import optimizer_of
from superduper.training.policies import Policy, StopRun
from superduper.training.precision import MixedPrecision
from superduper.training.sources import tensor_source
from superduper.training.weights import weights_hash

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(96, 4, generator=GENERATOR)
Y = (X.sum(1) > 0).long()


class Network(torch.nn.Module):
    """Keeps in mind what it computed in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2)
        )
        self.seen: set[tuple[bool, torch.dtype]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layers(x)
        self.seen.add((self.training, output.dtype))
        return output


def stage_of(module: torch.nn.Module, name: str | None, optimizer: str = "adam") -> Stage:
    graph = Graph([Node("model", module, ("x",), ("output",))])

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # So steep that a loss scaled by 65,536 overflows in fp16, where the scale has to give way.
        return 1_000 * torch.nn.functional.cross_entropy(output, y)

    return Stage(
        graph,
        Objective([Term("loss", loss, ("output", "y"))], MixedPrecision(name)),
        tensor_source({"x": X, "y": Y}, 16, seed=2),
        {"main": optimizer_of(optimizer, graph.parameters(), 0.02)},
        max_epochs=6,
    )


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_it_trains_in_16_bits_and_measures_in_32(name: str, dtype: torch.dtype) -> None:
    module = Network()
    stage = stage_of(module, name)
    before = evaluate(stage, stage.source)["loss"]
    Engine(Plan([stage], 3)).run()
    assert evaluate(stage, stage.source)["loss"] < before / 2
    assert module.seen == {(True, dtype), (False, torch.float32)}
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}


class _StopAt(Policy):
    def __init__(self, at: int) -> None:
        self.at = at

    def step_finished(self, engine: Engine, step: int) -> None:
        if step == self.at:
            self.state = engine.state_dict()
            raise StopRun


def test_a_scaled_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    straight = Network()
    Engine(Plan([stage_of(straight, "fp16")], 3), [Policy()]).run()
    stop = _StopAt(13)

    class Saving(Policy):
        def step_finished(self, engine: Engine, step: int) -> None:
            if step == 13:
                state = {**engine.state_dict(), "policies": [{}]}
                Checkpoints(tmp_path).save(step, state)

    Engine(Plan([stage_of(Network(), "fp16")], 3), [Saving(), stop]).run()
    state = Checkpoints(tmp_path).latest()
    assert state is not None
    assert 0 < state["precision"]["scale"] < 65_536
    resumed = Network()
    engine = Engine(Plan([stage_of(resumed, "fp16")], 3), [Policy()])
    engine.load_state_dict(state)
    engine.run()
    assert weights_hash(resumed.state_dict()) == weights_hash(straight.state_dict())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="must be 'bf16' or 'fp16', or None .*not 'fp8'"):
        MixedPrecision("fp8")
    with pytest.raises(InvalidInput, match="LBFGS cannot be used in fp16: take bf16"):
        Engine(Plan([stage_of(Network(), "fp16", "lbfgs")], 3)).run()
    with pytest.raises(InvalidInput, match="there is no device 'cuda:99' here"):
        device_of("cuda:99")
    with pytest.raises(InvalidInput, match="no compiler backend 'quick'; it has .*inductor"):
        model_of(compile="quick")


def model_of(**options: Any) -> TorchModel:
    torch.manual_seed(1)
    return TorchModel(
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)),
        torch.nn.Softmax(-1),
        torch.nn.CrossEntropyLoss(),
        torch.optim.SGD,
        **options,
    )


@pytest.mark.parametrize("options", [{}, {"clip": 0.1}, {"accumulate": 3}])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_torch_model_learns_the_same_in_16_bits(name: str, options: dict[str, Any]) -> None:
    exact, mixed = model_of(**options), model_of(mixed_precision=name, **options)
    for model in (exact, mixed):
        for first in range(0, 96, 16):
            x, y = X[first : first + 16].numpy(), Y[first : first + 16].numpy()
            loss = model.do_train_step(x, y, lr=0.5)
            assert loss.dtype.itemsize >= 4
    predicted = [model.do_inf_step(X.numpy()) for model in (exact, mixed)]
    assert predicted[1] == pytest.approx(predicted[0], abs=0.02)
    assert predicted[1].dtype == predicted[0].dtype


def test_a_compiled_model_computes_the_same_and_keeps_the_names_of_its_weights() -> None:
    plain, compiled = model_of(), model_of(compile="aot_eager")
    losses = [
        [float(model.do_train_step(X.numpy(), Y.numpy(), lr=0.5)) for _ in range(2)]
        for model in (plain, compiled)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert list(compiled.architecture.state_dict()) == list(plain.architecture.state_dict())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # type: ignore[attr-defined]


class _Own(Trainer):
    def train_batch(self, x: torch.Tensor, y: torch.Tensor) -> Mapping[str, Any]:
        loss = torch.nn.functional.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"loss": loss * len(x)}

    def evaluate_batch(self, x: torch.Tensor, y: torch.Tensor) -> Mapping[str, Any]:
        return {"loss": torch.nn.functional.cross_entropy(self.model(x), y) * len(x)}


def trainer(folder: Path, module: torch.nn.Module, **config: Any) -> _Own:
    loader = DataLoader(TensorDataset(X, Y), 16)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    config = {"model_dir": str(folder), "n_epochs": 3, "seed": 0, **config}
    return _Own(loader, loader, module, optimizer, config)


def test_a_trainer_trains_in_bf16_where_it_is_told_to(tmp_path: Path) -> None:
    module = Network()
    record = trainer(tmp_path / "run", module, mixed_precision="bf16", device="auto").train()
    assert module.seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert record["history"][-1]["validate_loss"] < record["history"][0]["validate_loss"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mixed_precision": "fp16"}, "must be 'bf16', or null .*scaled"),
        ({"device": "nowhere"}, "no device 'nowhere' here"),
        ({"compile": "quick"}, "no compiler backend 'quick'"),
    ],
)
def test_a_trainer_refuses_what_it_cannot_do(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        trainer(tmp_path / "run", Network(), **config)
