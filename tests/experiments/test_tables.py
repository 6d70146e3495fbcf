"""Tables and curves of known rows: averages, spreads, bold, escapes, and pictures that show what they should."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_coop.experiments import compare_results, make_tables
from hf_coop.experiments.curves import plot_tables
from hf_coop.experiments.results import ResultsFolder
from hf_coop.experiments.tables import Cell, Table


def row(method, value, *, protocol="few-shot", dataset="dtd", shots=16, seed=1, error=None, **others):
    """A row of results; `value` is an accuracy, or several by what was tested on."""
    values = value if isinstance(value, dict) else {(dataset, "all"): value}
    results = [
        {"tested_on": name, "classes": classes, "accuracy": accuracy, "top5_accuracy": 1.0, "macro_f1": accuracy}
        | {"ece": 0.1, "num_samples": 10, "per_class_accuracy": [accuracy, None]}
        for (name, classes), accuracy in values.items()
    ]
    run = {"protocol": protocol, "dataset": dataset, "method": method, "shots": shots, "seed": seed}
    return {**run, "n_ctx": None, "ctx_init": None, "results": results, "error": error, "seconds": 1.0, **others}


FEW_SHOT = [
    *(row("zero_shot", value, dataset=name, shots=0, seed=0) for name, value in (("dtd", 0.4), ("eurosat", 0.5))),
    *(row("coop", 0.5 + 0.01 * seed, shots=1, seed=seed) for seed in (1, 2, 3)),
    *(row("coop", 0.7 + 0.01 * seed, shots=16, seed=seed) for seed in (1, 2, 3)),
    *(row("coop", 0.6 + 0.02 * seed, dataset="eurosat", shots=1, seed=seed) for seed in (1, 2, 3)),
    row("coop", 0.9, dataset="eurosat", shots=16, seed=2),
]


def test_few_shot_tables():
    average, dtd, eurosat = make_tables(FEW_SHOT)
    assert [table.title for table in (average, dtd, eurosat)] == ["average over 2 sets", "dtd", "eurosat"]
    assert dtd.columns == ["1 shot", "16 shots"]
    assert dtd.rows["zero-shot"] == dict.fromkeys(dtd.columns, Cell(pytest.approx(40.0)))  # the same for any shots
    found = dtd.rows["CoOp"]["1 shot"]
    assert (found.mean, found.deviation, found.seeds) == (pytest.approx(52), pytest.approx(np.std([51, 52, 53])), 3)
    assert found.shown() == "52.0 ± 0.8"
    assert found.shown(ci95=True) == f"52.0 ± {1.96 * np.std([51, 52, 53]) / 3**0.5:.1f}"
    by_seed = [(51 + 62) / 2, (52 + 64) / 2, (53 + 66) / 2]  # seed by seed, then over the seeds
    assert average.rows["CoOp"]["1 shot"] == Cell(pytest.approx(np.mean(by_seed)), pytest.approx(np.std(by_seed)), 3)
    assert average.rows["CoOp"]["16 shots"] == Cell(pytest.approx((72 + 90) / 2))  # of the seed that both sets have
    assert eurosat.rows["CoOp"]["16 shots"].seeds == 1


def test_markdown_and_latex():
    (table,) = make_tables(FEW_SHOT[:1] + FEW_SHOT[2:8])
    assert table.markdown() == (
        "## dtd\n\n|  | 1 shot | 16 shots |\n| --- | ---: | ---: |\n| zero-shot | 40.0 | 40.0 |\n"
        "| CoOp | **52.0 ± 0.8** | **72.0 ± 0.8** |\n"
    )
    latex = table.latex()
    assert r"CoOp & \textbf{52.0 $\pm$ 0.8} & \textbf{72.0 $\pm$ 0.8} \\" in latex
    assert r"\begin{tabular}{lrr}" in latex
    strange = Table("a_b & 50% | <i>", ["#1"], {"x|y*_$": {"#1": Cell(50.0)}, "none": {}})
    assert r"x\|y\*\_\$" in strange.markdown()
    assert "| none | – |" in strange.markdown()
    assert "**50.0**" in strange.markdown()
    assert r"\caption{a\_b \& 50\% \textbar{} \textless{}i\textgreater{}.}" in strange.latex()
    assert r"none & --" in strange.latex()


def test_equal_ones_are_both_best():
    table = Table("", ["a"], {"x": {"a": Cell(50.04)}, "y": {"a": Cell(49.96)}, "z": {"a": Cell(49.9)}})
    assert table.markdown().count("**50.0**") == 2


def test_base_to_new_averages_are_those_of_the_papers():
    """CoCoOp's of table 1: the harmonic mean of the averages, not the average of harmonic means."""
    halves = {"dtd": (0.80, 0.60), "eurosat": (0.80, 0.20)}
    rows = [
        row("coop", {(name, "base"): base, (name, "new"): new}, protocol="base-to-new", dataset=name)
        for name, (base, new) in halves.items()
    ]
    average, dtd, _ = make_tables(rows)
    assert average.columns == ["base", "new", "H"]
    assert average.rows["CoOp"]["H"].mean == pytest.approx(2 * 80 * 40 / 120)
    assert dtd.rows["CoOp"]["H"].mean == pytest.approx(2 * 80 * 60 / 140)


def test_transfer_tables():
    tested = {("imagenet", "all"): 0.7, ("dtd", "all"): 0.4, ("eurosat", "all"): 0.6}
    rows = [row("coop", tested, protocol="cross-dataset", dataset="imagenet", seed=seed) for seed in (1, 2)]
    (table,) = make_tables(rows)
    assert table.title == "learned on imagenet"
    assert table.columns == ["imagenet", "dtd", "eurosat", "average of the others"]
    assert table.rows["CoOp"]["average of the others"] == Cell(pytest.approx(50.0), 0.0, 2)


def test_contexts_and_shots_are_named_where_they_vary():
    rows = [
        row("coop", 0.5, protocol="context", n_ctx=4),
        row("coop", 0.6, protocol="context", ctx_init="a photo of a"),
    ]
    (table,) = make_tables(rows)
    assert list(table.rows) == ["CoOp, M = 4", "CoOp, from 'a photo of a'"]
    rows = [row("coop", 0.5), row("coop", 0.6, n_ctx=4), row("linear_probe", 0.7)]
    (table,) = make_tables(rows)
    assert list(table.rows) == ["CoOp", "CoOp, M = 4", "linear probe"]
    halves = {("dtd", "base"): 0.5, ("dtd", "new"): 0.5}
    (table,) = make_tables([row("coop", halves, protocol="base-to-new", shots=shots) for shots in (1, 16)])
    assert list(table.rows) == ["CoOp, 1 shot", "CoOp, 16 shots"]


def test_failed_runs_are_in_no_table():
    assert make_tables([row("coop", {}, error="it broke")]) == []
    (table,) = make_tables([row("coop", 0.5, seed=1), row("coop", {}, seed=2, error="it broke")])
    assert table.rows["CoOp"]["16 shots"] == Cell(pytest.approx(50.0))


def test_curves(tmp_path):
    """One panel a table with the methods in the legend; the same tables make the same bytes."""
    tables = make_tables(FEW_SHOT)
    for name in ("first", "second"):
        plot_tables(tables, "Few-shot", False, [tmp_path / f"{name}.png", tmp_path / f"{name}.svg"])
    for kind in ("png", "svg"):
        assert (tmp_path / f"first.{kind}").read_bytes() == (tmp_path / f"second.{kind}").read_bytes()
    with Image.open(tmp_path / "first.png") as picture:
        assert picture.width > 3 * 400
        assert len(picture.convert("RGB").getcolors(10**6)) > 100
    drawn = (tmp_path / "first.svg").read_text(encoding="utf-8")
    for text in ("average over 2 sets", "dtd", "eurosat", "shots a class", "test accuracy (%)", "zero-shot", "CoOp"):
        assert re.search(f"<!-- {re.escape(text)} -->", drawn), text


def test_base_to_new_is_drawn_so_that_differences_are_seen(tmp_path, monkeypatch):
    """Marks on a scale that need not begin at 0, and a legend that covers none of them."""
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), savefig(self, *a, **k))[1])
    accuracies = {"zero_shot": (0.931, 0.878), "coop": (0.979, 0.875), "cocoop": (0.973, 0.853)}
    rows = [
        row(method, {("dtd", "base"): base, ("dtd", "new"): new}, protocol="base-to-new", seed=seed)
        for method, (base, new) in accuracies.items()
        for seed in (1, 2, 3)
    ]
    plot_tables(make_tables(rows), "Base-to-new", False, [tmp_path / "marks.png"])
    (figure,) = drawn
    (axes,), (legend,) = figure.axes, figure.legends
    assert axes.get_ylim()[0] > 80
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    assert [text.get_text() for text in legend.get_texts()] == ["zero-shot", "CoOp", "CoCoOp"]
    marks = [container.lines[0].get_xydata().tolist() for container in axes.containers]
    assert [[y for _, y in places] for places in marks][1] == pytest.approx([97.9, 87.5, 92.409], abs=1e-3)
    assert len({x for places in marks for x, _ in places}) == 9  # none hides another


def test_comparing_folders(tmp_path):
    rows = {
        "paper": [row("coop", 0.5, seed=1), row("coop", 0.7, seed=2), row("kgcoop", 0.9)],
        "fast": [row("coop", 0.6, seed=1), row("zero_shot", 0.3, shots=0, seed=0)],
    }
    for name, own in rows.items():
        with ResultsFolder(tmp_path / name) as results:
            for line in own:
                results.add(line)
    table = compare_results([tmp_path / name for name in rows])
    assert table.columns == ["paper", "fast", "fast - paper"]
    assert [round(cell.mean, 6) for cell in table.rows["coop, 16"].values()] == [50, 60, 10]  # of the seed of both
    assert table.rows["kgcoop, 16"].keys() == {"paper"}
    assert table.notes == ["1 results that only some of the folders have are left out."]
    table = compare_results([tmp_path / "paper"], by=["seed"])
    assert {name: cell["paper"].mean for name, cell in table.rows.items()} == {"1": pytest.approx(70), "2": 70}
    with pytest.raises(ValueError, match="no column 'recipe' to compare by; there are protocol, dataset"):
        compare_results([tmp_path / "paper"], by=["recipe"])
    with pytest.raises(ValueError, match="no results in"):
        compare_results([tmp_path])
