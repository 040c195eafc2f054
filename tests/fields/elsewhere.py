"""Objects that are sealed by programs of their own, and loaded by one that knows none of them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

LOADER = """
import bson, pathlib, sys, types
sys.modules["__main__"] = types.ModuleType("__main__")
from superduper.fields.sealing import Sealed
from superduper.store.unsealing import _read
sealed = Sealed.from_dict(bson.decode(pathlib.Path(sys.argv[1]).read_bytes()))
parts = _read(sealed)
names = {"it": parts["object"]}
if "torch" in sys.argv[2]:  # importing it takes seconds
    import torch
    names["torch"] = torch
print(eval(sys.argv[2], names))
"""


SEALER = """
import sys, bson, pathlib
from superduper.fields.sealing import seal
{code}
pathlib.Path({out!r}).write_bytes(bson.encode(seal({{"object": it}}).to_dict()))
"""


def run(command: list[str], folder: Path, text: str | None = None, **variables: str) -> str:
    """What a program prints; its errors fail the test."""
    done = subprocess.run(
        command,
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_elsewhere(path: Path, expression: str) -> str:
    """What an expression about the object gives in a fresh process that knows no script."""
    return run([sys.executable, "-P", "-c", LOADER, str(path), expression], Path("/"))


def by_script(folder: Path, code: str, **variables: str) -> Path:
    """Seal the object `it` of a script that runs as `__main__`."""
    out, script = folder / "sealed", folder / "script.py"
    script.write_text(SEALER.format(code=textwrap.dedent(code), out=str(out)))
    run([sys.executable, str(script)], folder, **variables)
    return out


def by_prompt(folder: Path, code: str) -> Path:
    """Seal the object `it` that was typed at Python's prompt."""
    out = folder / "sealed"
    typed = SEALER.format(code=textwrap.dedent(code), out=str(out))
    lines = "\n".join(  # a block ends with an empty line at the prompt, and holds none
        f"\n{line}" if line and not line[0].isspace() else line
        for line in typed.splitlines()
        if line.strip()
    )
    run([sys.executable, "-i", "-q"], folder, f"{lines}\n")
    return out


def by_notebook(folder: Path, code: str) -> Path:
    """Seal the object `it` of a notebook's cells."""
    import nbformat
    from nbclient import NotebookClient

    out = folder / "sealed"
    cells = SEALER.format(code=textwrap.dedent(code), out=str(out)).split("\n\n\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute(cwd=str(folder))
    return out
