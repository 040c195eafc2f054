"""Train, compare and draw from a command line.

    python -m superduper.training train SCRIPT --config config.json --set net.width=16
    python -m superduper.training config SCRIPT --set n_epochs=3
    python -m superduper.training visualize SCRIPT MODEL_DIR --epoch 2
    python -m superduper.training highscores FOLDER METRIC

SCRIPT is a file or a module with `train(config)`. It may have `DEFAULTS`, the config to begin with,
and `datasets(config)`: then `train` is called with these before the config. To be drawn, it has
`make_model(config)` too.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from superduper.errors import InvalidInput, NotFound, SuperduperError
from superduper.training.configs import Config, merged, run_config
from superduper.training.randomness import seed_everything
from superduper.training.run_folder import RunFolder
from superduper.training.scores import highscores


def main(arguments: Sequence[str]) -> int:
    """Run a command; answers the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except SuperduperError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(interrupt, file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m superduper.training")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("train", _train, "train, or go on with the run in model_dir"),
        ("config", _config, "show the config that train would have"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("script", help="a file or module with train(config)")
        command.add_argument("--config", type=Path, help="a JSON file over the script's defaults")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
        command.set_defaults(run=run)
    draw = commands.add_parser("visualize", help="draw what a run's model predicts")
    draw.add_argument("script")
    draw.add_argument("model_dir", type=Path)
    draw.add_argument("--epoch", type=int, help="the last one, if not given")
    draw.set_defaults(run=_visualize)
    scores = commands.add_parser("highscores", help="rank the runs in a folder")
    scores.add_argument("folder", type=Path)
    scores.add_argument("metric")
    scores.set_defaults(run=_highscores)
    return parser


def _train(parsed: argparse.Namespace) -> None:
    script = _script(parsed.script)
    config = _settings(script, parsed)
    # Before the model is made: its first weights are drawn.
    seed_everything(config["seed"])
    _function(script, "train")(*_datasets(script, config), config)


def _config(parsed: argparse.Namespace) -> None:
    print(json.dumps(_settings(_script(parsed.script), parsed), indent=2))


def _visualize(parsed: argparse.Namespace) -> None:
    from superduper.training.charts import visualize

    script = _script(parsed.script)
    config = RunFolder(parsed.model_dir).read("config.json")
    if config is None:
        raise InvalidInput(f"{parsed.model_dir} holds no run")
    datasets = _function(script, "datasets")(config)
    model = _function(script, "make_model")(config)
    # The last part is the one that the model has seen least of: test, or validate.
    print(visualize(parsed.model_dir, model, datasets[-1], parsed.epoch))


def _highscores(parsed: argparse.Namespace) -> None:
    rows = highscores(parsed.folder, parsed.metric)
    if not rows:
        raise NotFound(f"no finished run in {parsed.folder} has measured {parsed.metric!r}")
    for row in rows:
        data = f"{row['fold']} {row['data_hash'][:12]}"
        print(f"{row['rank']:>4}  {row['value']:>12.6g}  {data:<22}  {row['run']}")


def _script(name: str) -> ModuleType:
    path = Path(name)
    if path.suffix != ".py":
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise InvalidInput(f"there is no module {name!r}") from error
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or specification is None or specification.loader is None:
        raise InvalidInput(f"there is no script {name!r}")
    module = importlib.util.module_from_spec(specification)
    # A script finds what lies beside it, and loader workers find the script.
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def _function(script: ModuleType, name: str) -> Any:
    found = getattr(script, name, None)
    if not callable(found):
        raise InvalidInput(f"{script.__name__} has no function {name!r}")
    return found


def _datasets(script: ModuleType, config: Config) -> tuple[Any, ...]:
    return tuple(script.datasets(config)) if hasattr(script, "datasets") else ()


def _settings(script: ModuleType, parsed: argparse.Namespace) -> Config:
    overrides: Config = {}
    for text in parsed.set:
        overrides = merged(overrides, _override(text))
    return run_config(getattr(script, "DEFAULTS", None), _file(parsed.config), overrides)


def _file(path: Path | None) -> Config | None:
    if path is None:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read the config {path}: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"the config {path} must hold one JSON object")
    return content


def _override(text: str) -> Config:
    """`net.width=16` as `{"net": {"width": 16}}`; what is no JSON is a text."""
    key, equals, written = text.partition("=")
    if not equals or not all(key.split(".")):
        raise InvalidInput(f"--set takes KEY=VALUE, not {text!r}")
    try:
        value: Any = json.loads(written)
    except ValueError:
        value = written
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
