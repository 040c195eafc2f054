"""What is seen while one waits: bars on a terminal and in a notebook, plain lines elsewhere."""

import os
import pty
import re
import sys
import termios
import threading
import warnings

import nbformat
import pytest

from definitions import SETTINGS, documents, register

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def watched(worker, place):
    """A collection and its imputation, which can be fitted again and again."""
    docs = place.fresh()
    docs.insert_many(documents(150, 100))
    register(docs)
    imputation = docs.create_imputation(**{**SETTINGS, "max_epochs": 60})
    return docs, imputation.wait(timeout=120, progress=False)


class Terminal:
    """A pseudo-terminal in the place of stderr; `seen` is what it was sent."""

    def __enter__(self):
        self.own, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 200))
        self.stream = os.fdopen(slave, "w")
        self.seen, self.before, sys.stderr = b"", sys.stderr, self.stream
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        return self

    def _read(self):
        try:
            while part := os.read(self.own, 4096):
                self.seen += part
        except OSError:  # the other end is closed
            pass

    def __exit__(self, *_):
        sys.stderr = self.before
        self.stream.close()
        self.thread.join(timeout=30)
        os.close(self.own)


def test_a_bar_on_a_terminal(watched):
    _, imputation = watched
    with Terminal() as terminal:
        imputation.refit().wait(timeout=120)
    text = terminal.seen.decode()
    assert "\rfit y_from_x:" in text and "steps/s" in text  # drawn again and again in one line


def test_plain_lines_where_there_is_no_terminal(watched, capfd):
    _, imputation = watched
    imputation.refit().wait(timeout=120)
    lines = capfd.readouterr().err.splitlines()
    assert lines and all(line.startswith("fit y_from_x: ") for line in lines)
    assert all(" steps" in line and "\r" not in line for line in lines)
    done, total = re.search(r": (\d+) of (\d+) steps, .*accuracy", lines[-1]).groups()
    assert done == total, "the last line tells how it ended"


def test_nothing_where_nothing_is_wanted(watched, capfd):
    _, imputation = watched
    imputation.refit().wait(timeout=120, progress=False)
    assert capfd.readouterr().err == ""


def test_a_bar_in_a_notebook(watched, place, tmp_path):
    docs, _ = watched
    cells = [
        f"import superduper\nclient = superduper.connect({place.uri!r}, worker='none')\n"
        f"docs = client[{place.database.name!r}][{docs.name!r}]",
        "docs.imputation('y_from_x').refit().wait(timeout=120)\n",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the notebook's own machinery
        from nbclient import NotebookClient

        NotebookClient(
            notebook,
            timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        ).execute()
    said = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert "fit y_from_x:" in said and "steps/s" in said and "Error" not in said
