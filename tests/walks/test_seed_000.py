"""Seed 000's example: as a script, typed into a prompt, and in a notebook."""

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pexpect
import pytest

from superduper.store.embedded import attach
from tests.walks import seed_000
from tests.walks.programs import Program, environment, processes_of, survivors


def check_story(output: str) -> None:
    """What every way of running it must end with."""
    assert "filled 100" in output
    found = re.search(r"right (\d+)", output)
    assert found and int(found[1]) >= 95, output
    assert "by {'y_from_x'}" in output
    assert "<Imputation 'y_from_x': x → y, watching, version 1" in output


def test_as_a_script_with_nothing_else(tmp_path: Path) -> None:
    program = Program(f"{seed_000.script('shop')}\ninput()\n", tmp_path)
    output = "\n".join(program.lines(4))
    check_story(output)
    assert (tmp_path / "superduper-data").is_dir()
    started = processes_of(tmp_path, program.process.pid)
    assert len(started) >= 3  # a keeper, a server, a worker
    assert program.end() == 0
    assert survivors(started) == []
    assert processes_of(tmp_path) == []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose store stays open, with its worker, from one program to the next."""
    folder = tmp_path_factory.mktemp("shop")
    with attach(folder / "superduper-data", worker=True):
        yield folder


def test_typed_into_a_prompt(shop: Path) -> None:
    prompt = pexpect.spawn(
        sys.executable,
        ["-q"],
        cwd=str(shop),
        env=environment(PYTHONSTARTUP="", TERM="dumb"),
        encoding="utf-8",
        timeout=120,
        dimensions=(50, 200),
    )
    said = ""
    prompt.expect_exact(">>> ")
    for line in seed_000.lines(seed_000.script("typed")):
        prompt.sendline(line)
        prompt.expect([r"\n>>> ", r"\n\.\.\. ", r"\r\x1b\[?2004h>>> "])
        said += prompt.before
    assert "Error" not in said and "Warning" not in said, said
    check_story(said)
    assert "fit y_from_x" in said  # the progress bar
    prompt.sendline("exit()")
    prompt.expect(pexpect.EOF)
    prompt.close()
    assert prompt.exitstatus == 0


def notebook(*cells: str) -> nbformat.NotebookNode:
    """A notebook with these cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def test_in_a_notebook_with_objective(shop: Path) -> None:
    calls = seed_000.CALLS.replace("loss=", "objective=")
    assert calls != seed_000.CALLS
    parts = [seed_000.IMPORTS, seed_000.DEFINITIONS, seed_000.documents("noted"), calls]
    written = notebook(*parts, seed_000.WAIT, seed_000.CHECK, "imputation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the notebook's own machinery
        from nbclient import NotebookClient

        NotebookClient(
            written,
            timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": str(shop)}},
        ).execute(env=environment())
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in written.cells]
    assert said[:2] == ["", ""] and "Warning" not in "".join(said)
    assert "fit y_from_x" in said[4]  # the progress bar
    check_story(said[5])
    (shown,) = written.cells[6].outputs
    assert "<td>y_from_x</td>" in shown.data["text/html"]
    assert "<td>watching</td>" in shown.data["text/html"]
