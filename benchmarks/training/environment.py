"""An environment beside the project's, with the frameworks that are measured, on the same torch."""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".frameworks"
REQUIREMENTS = Path(__file__).with_name("frameworks.txt")


def python() -> str:
    """The environment's interpreter; it is made, or made anew, if it is not there as required."""
    interpreter = FOLDER / "bin" / "python"
    installed = FOLDER / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if not installed.exists() or installed.read_text() != wanted:
        _make(interpreter)
        installed.write_text(wanted)
    return str(interpreter)


def _make(interpreter: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    site = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # What the project has installed is seen from there too, so that nothing brings another torch.
    Path(site, "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run(
        [interpreter, "-m", "pip", "install", *options, "--requirement", str(REQUIREMENTS)],
        check=True,
    )
