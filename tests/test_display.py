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


def test_without_a_terminal_lines_tell_how_far_a_fit_and_filling_are(capfd):
    scan = {"seen": 500, "left": 1_500, "eta_seconds": 12.4}
    fit = {"state": "running", "progress": {"done": 0, "total": 300, "metrics": {}}}
    ended = {"state": "done", "progress": {"done": 300, "total": 300, "metrics": {"loss": 0.125}}}
    with _Bar("y", enabled=True) as bar:
        bar.update({"fit": fit, "status": "fitting", "scan": {}})
        bar.update({"fit": fit, "status": "fitting", "scan": {}})  # too soon for another line
        bar.update({"fit": ended, "status": "filling", "scan": scan})
        bar.update({"fit": ended, "status": "watching", "scan": {"seen": 2_000}})
        bar.update({"fit": ended, "status": "watching", "scan": {"seen": 2_000}})
    assert capfd.readouterr().err.splitlines() == [
        "fit y: 0 of 300 steps",
        "fit y: 300 of 300 steps, loss 0.125",
        "fill y: 500 of 2000 documents, about 12 s left",
        "fill y: 2000 of 2000 documents",
    ]
