"""`hf-coop demo`: what it says, draws and refuses."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from hf_coop import HFCoOp
from hf_coop.experiments import run_demo
from hf_coop_cli import app


def test_more_shots_than_there_are(tmp_path, capsys, monkeypatch):
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), savefig(self, *a, **k))[1])
    metrics = run_demo(1000, 1, tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    assert "1000" not in said
    assert said.count("handwritten digits a class (897 in all)") == 2
    assert metrics["num_train_images"] == 897
    assert f"up to {metrics['num_shots']} handwritten digits" in said
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Learned from up to {metrics['num_shots']} images a class (897 in all), seed 1." in card
    assert HFCoOp.from_pretrained(tmp_path / "out").card_details.train_images == 897

    figure = drawn[-1]
    assert Image.open(tmp_path / "out" / "demo.png").width > 1000
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert [texts[row * 10][-2:] for row in range(3)] == [["hand-written", "learned"]] * 3
    for axes, (before, after, *_) in zip(figure.axes, texts, strict=True):
        framed = axes.spines["left"].get_visible()
        assert framed == (before.endswith("✗") and after.endswith("✓"))
    renderer = figure.canvas.get_renderer()
    for text in [figure._suptitle, *(text for axes in figure.axes for text in axes.texts)]:
        box = text.get_window_extent(renderer)
        assert figure.bbox.count_contains(box.get_points()) == 2, text
    for above, below in zip(figure.axes[:20], figure.axes[10:], strict=True):  # labels stand by their own picture
        for box in (text.get_window_extent(renderer) for text in above.texts[:2]):
            to_own = above.get_window_extent(renderer).y0 - box.y1
            assert 0 <= to_own < box.y0 - below.get_window_extent(renderer).y1


def test_where_nothing_can_be_written_nothing_is_computed(tmp_path):
    (tmp_path / "taken").write_text("mine")
    for place in (tmp_path / "taken", tmp_path / "taken" / "below", Path("/proc/demo")):  # where root cannot either
        done = CliRunner().invoke(app, ["demo", "--output", str(place)])
        assert done.exit_code == 1
        assert done.output.startswith(f"error: cannot write to '{place}': ")
        assert len(done.output.splitlines()) == 1
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_full_disk_is_found_first(tmp_path):
    """A limit on the size of files makes a larger write fail, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write to .*; make room there, or choose another folder"):
            run_demo(1, 1, Path(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
