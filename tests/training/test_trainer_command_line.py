"""Training from a command line: config, training, going on, scores, pictures."""

import json
from pathlib import Path

import pytest

from superduper.training.command_line import main

SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from superduper.training import Trainer, train_validate_test_split

DEFAULTS = {"n_epochs": 2, "net": {"width": 4, "depth": 1}}


def datasets(config):
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return train_validate_test_split(TensorDataset(features, (features[:, 0] > 0).long()))


class Model(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 2))

    def forward(self, features):
        return torch.distributions.Categorical(logits=self.layers(features))


def make_model(config):
    return Model(config["net"]["width"])


def train(train_ds, validate_ds, test_ds, config):
    model = make_model(config)
    loaders = [DataLoader(each, 8, shuffle=True) for each in (train_ds, validate_ds)]
    optimizer = torch.optim.Adam(model.parameters())
    Trainer(*loaders, model, optimizer, config, test_loader=DataLoader(test_ds, 8)).train()
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "digits_script.py"
    path.write_text(SCRIPT)
    return str(path)


def record(folder: str) -> dict[str, object]:
    return dict(json.loads(Path(folder, "run.json").read_text()))


def test_a_script_is_trained_and_gone_on_with(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.json").write_text('{"net": {"width": 6}}')
    settings = ["--config", "mine.json", "--set", "net.depth=2", "--set", "model_dir=runs/a"]
    assert main(["train", script, *settings]) == 0
    kept = json.loads(Path("runs/a/config.json").read_text())
    assert kept["net"] == {"width": 6, "depth": 2} and kept["n_epochs"] == 2
    first = record("runs/a")
    assert main(["train", script, *settings, "--set", "n_epochs=3"]) == 0
    assert record("runs/a")["epochs"] == 3 and record("runs/a")["seed"] == first["seed"]
    capsys.readouterr()
    assert main(["train", script, "--set", "model_dir=runs/a"]) == 1
    assert "another config (net was" in capsys.readouterr().err
    same = ["--set", f"seed={first['seed']}", "--set", "model_dir=runs/b", *settings[:4]]
    assert main(["train", script, *same]) == 0
    assert record("runs/b")["initial_hash"] == first["initial_hash"]
    capsys.readouterr()
    assert main(["highscores", "runs", "log_prob"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in table] == ["1", "2"] and table[0][3] == table[1][3]
    pytest.importorskip("matplotlib")
    assert main(["visualize", script, "runs/a", "--epoch", "1"]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "epoch001.html"


def test_the_config_is_shown(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["config", script, "--set", "net.width=9", "--set", "name=x", "--set", "seed=1"]) == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["net"] == {"width": 9, "depth": 1}
    assert (shown["name"], shown["seed"], shown["model_dir"]) == ("x", 1, "model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing.py"], "no script 'nothing.py'"),
        (["train", "no_such_module"], "no module 'no_such_module'"),
        (["train", "json"], "json has no function 'train'"),
        (["config", "json", "--set", "a"], "KEY=VALUE, not 'a'"),
        (["config", "json", "--config", "no.json"], "cannot read the config no.json"),
        (["visualize", "json", "nowhere"], "nowhere holds no run"),
        (["highscores", "nowhere", "f1"], "no finished run in nowhere has measured 'f1'"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], message: str, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
