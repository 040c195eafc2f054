"""Tables look right on a terminal and in a notebook."""

from superduper.display import Table
from superduper.handles import _Bar

ROWS = [
    {"name": "a", "created_at": 1_767_225_600_000, "metrics": {"loss": 0.123456}, "error": None},
    {"name": "<b>", "created_at": None, "metrics": {}, "error": "x" * 60},
]


def test_a_table_is_aligned_and_short():
    assert repr(Table(ROWS, ("name", "created_at", "metrics", "error"))).split("\n") == [
        "name  created_at           metrics      error",
        "────  ───────────────────  ───────────  ────────────────────────────────────────",
        "a     2026-01-01 00:00:00  loss 0.1235",
        f"<b>                                     {'x' * 39}…",
    ]


def test_nothing_and_too_much():
    assert repr(Table([], ("name",))) == "(nothing)"
    long = Table([{"n": i} for i in range(60)], ("n",))
    assert repr(long).endswith("… and 10 more") and len(long) == 60


def test_html_is_escaped():
    html = Table(ROWS, ("name",))._repr_html_()
    assert "<td>&lt;b&gt;</td>" in html and "<script" not in html


def test_without_a_terminal_a_line_tells_how_long_filling_takes(capfd):
    scan = {"seen": 500, "left": 1_500, "eta_seconds": 12.4}
    with _Bar("y", enabled=True) as bar:
        bar.update({"fit": None, "status": "filling", "scan": scan})
    assert capfd.readouterr().err == "fill y: 500 of 2000 documents, about 12 s left\n"
