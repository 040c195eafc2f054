"""The code in README and quick start does what the pages say."""

import ast
import inspect
import re
from pathlib import Path

import superduper
from superduper.collection import Collection
from superduper.commands import CreateImputation
from superduper.handles import Imputation
from tests.server.running import running
from tests.waiting import until
from tests.walks.programs import processes_of, run_script

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = "docs/quickstart.md"


def blocks_of(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)


def command_of(page: str, word: str) -> str:
    """The indented shell command of a page in which a word stands, its lines joined."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("    ") and word in line]
    return line.strip()


def test_the_quick_start_by_hand(tmp_path: Path) -> None:
    script, carried, over_http = blocks_of(QUICKSTART)
    done = run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(("fit y_", "fill y_")) for line in done.stderr.splitlines())
    imputation, counts, filled, prediction = done.stdout.splitlines()
    begin = r"<Imputation 'y_from_x': x → y, watching, version 1, loss 0\.\d+, accuracy (.*)>"
    found = re.fullmatch(begin, imputation)
    assert found and float(found[1]) >= 0.8, imputation
    assert ast.literal_eval(counts)["filled"] == 200
    for key in re.findall(r'"(\w+)":', carried):
        assert f"'{key}'" in filled
    assert prediction == "dog"
    until(lambda: not processes_of(tmp_path), what="the store to close")
    serve_it(tmp_path, over_http)


def serve_it(folder: Path, snippet: str) -> None:
    """What the page says under "Over HTTP", in the same folder."""
    command = command_of(QUICKSTART, "superduper up").replace("./", f"{folder}/").split()[1:]
    with running(folder / "up.log", *command, "--port", "0", "--json") as up:
        snippet = snippet.replace("http://127.0.0.1:8000", up.ready["url"])
        snippet = snippet.replace("sd_...", up.ready["token"])
        done = run_script(f'{snippet}print(docs.count_documents({{"_fill.y.version": 1}}))', folder)
        assert (done.stdout, done.stderr) == ("200\n", "")
        curl = re.search(
            r"-d '(.*?)' +http://127\.0\.0\.1:8000(\S+)", command_of(QUICKSTART, "curl")
        )
        assert curl
        with up.http() as http:
            headers = {"Content-Type": "application/json"}
            assert http.post(curl[2], content=curl[1], headers=headers).json()["outputs"] == ["dog"]
    until(lambda: not processes_of(folder), what="the store to close")


def test_the_names_in_the_readme_exist() -> None:
    (snippet,) = blocks_of("README.md")
    owners = {"superduper": superduper, "docs": Collection, "imputation": Imputation}
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    checked = set()
    for call in calls:
        if not (isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)):
            continue
        owner = owners[call.func.value.id]
        method = inspect.signature(getattr(owner, call.func.attr))
        keywords = {str(keyword.arg) for keyword in call.keywords}
        if call.func.attr == "create_imputation":
            assert keywords <= set(CreateImputation.model_fields)
        else:
            method.bind_partial(*call.args, **dict.fromkeys(keywords))
        checked.add(call.func.attr)
    assert checked >= {"connect", "create_model", "create_imputation", "wait", "insert_one"}
