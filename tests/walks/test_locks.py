"""What is installed is pinned by hash, in the versions that were tested."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
DEPENDENCIES: list[str] = PROJECT["project"]["dependencies"]
LOCKS = sorted((ROOT / "locks").glob("*.lock"))


def normal(requirement: str) -> str:
    """A requirement's distribution, named as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def lines(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if not line.startswith("#")]


def versions(path: Path) -> dict[str, str]:
    """The version of each distribution that a lock or `constraints.txt` pins."""
    pins = [line.split()[0].split("==") for line in lines(path)]
    return {normal(name): version for name, version in pins}


TESTED = versions(ROOT / "constraints.txt")


def names(*requirements: str) -> set[str]:
    """The distributions that requirements name, but for this one."""
    return set(map(normal, requirements)) - {normal(PROJECT["project"]["name"])}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_hashes_and_tested_versions(path: Path) -> None:
    for line in lines(path):
        _, *hashes = line.split()
        assert hashes and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", h) for h in hashes), line
    locked = {name: version.removesuffix("+cpu") for name, version in versions(path).items()}
    assert {n: v for n, v in locked.items() if TESTED.get(n, v) != v} == {}


def test_the_locks_hold_all_that_is_wanted() -> None:
    locked = {path.stem: set(versions(path)) for path in LOCKS}
    torch = {"torch"}
    assert locked["torch-cpu"] == torch < locked["torch-cuda"]
    assert names(*PROJECT["build-system"]["requires"]) <= locked["build"]
    image = names(*DEPENDENCIES, *EXTRAS["torch"], *EXTRAS["server"], *EXTRAS["images"])
    assert image - locked["image"] == torch
    everything = names(*DEPENDENCIES, *sum(EXTRAS.values(), []))
    assert everything - locked["development"] == torch
    assert everything - set(TESTED) == set()


@pytest.mark.parametrize(
    ("script", "install"), [("Dockerfile", r"/bin/pip install"), ("scripts/install", r"\$install")]
)
def test_nothing_is_installed_without_its_hash(script: str, install: str) -> None:
    text = (ROOT / script).read_text().replace("\\\n", " ")
    commands = re.findall(install + r" (.*?)\s*(?:&&|; then|$)", text, re.M)
    hashed = [command for command in commands if "--require-hashes" in command]
    (ours,) = set(commands) - set(hashed)
    assert ours.endswith((" /wheels/*.whl", " --editable ."))
