"""An environment beside the project's, for packages that cannot or need not live in it.

What the project has installed is seen from there too, so that all measure on the same torch.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(folder: Path, requirements: Path, *options: str) -> str:
    """The environment's interpreter; it is made, or made anew, if it is not there as required.

    `options` are pip's. Raises CalledProcessError, with what pip said, if it cannot be made.
    """
    interpreter = folder / "bin" / "python"
    installed = folder / "requirements.txt"
    wanted = requirements.read_text()
    if not installed.exists() or installed.read_text() != wanted:
        _make(folder, interpreter, ["--requirement", str(requirements), *options])
        installed.write_text(wanted)
    return str(interpreter)


def _make(folder: Path, interpreter: Path, options: list[str]) -> None:
    venv = [sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)]
    subprocess.run(venv, check=True)
    site = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(site, "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", *options],
        check=True,
        capture_output=True,
        text=True,
    )
