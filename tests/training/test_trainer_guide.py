"""The guide's code runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "trainer.md"


def test_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "guide"}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    ranked = [line.split() for line in capsys.readouterr().out.splitlines() if "runs/" in line]
    assert [row[0] for row in ranked] == ["1", "2"]
    assert len(names["record"]["history"]) == 3


def test_the_guide_names_every_setting() -> None:
    from superduper.training.configs import DEFAULTS

    text = GUIDE.read_text(encoding="utf-8")
    assert [key for key in [*DEFAULTS, "seed"] if f"| `{key}` |" not in text] == []
