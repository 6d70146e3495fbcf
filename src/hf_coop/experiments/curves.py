"""Pictures of the tables: curves over shots with error bands, or a mark for each method where there are no shots."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..escaping import figure_text
from .tables import Cell, Table

PANEL = (4.2, 3.3)  # inches
MAX_ACROSS = 4
LONGEST_TITLE, LONGEST_NAME = 100, 40
MARKERS = "osD^vPX*<>"


def plot_tables(tables: Sequence[Table], title: str, ci95: bool, paths: Sequence[str | os.PathLike[str]]) -> None:
    """One panel a table, the average first, in each of the files.

    Args:
        tables: of [`make_tables`].
        title (`str`): above all.
        ci95 (`bool`): bands and bars are 95 % confidence intervals instead of standard deviations.
        paths: `.png` and `.svg` files.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row for table in tables for row in table.rows))
    across = min(MAX_ACROSS, len(tables))
    down = math.ceil(len(tables) / across)
    columns = max(len(table.columns) for table in tables)
    width = max(PANEL[0], 0.9 * columns) if not _is_curve(tables[0]) else PANEL[0]
    figure = Figure(figsize=(max(5.5, width * across), PANEL[1] * down + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title, LONGEST_TITLE))
    panels = figure.subplots(down, across, squeeze=False).flat
    for table, axes in zip(tables, panels, strict=False):
        draw = _draw_curves if _is_curve(table) else _draw_marks
        draw(axes, table, names, ci95)
        axes.set_title(figure_text(table.title, LONGEST_NAME), fontsize=10)
        axes.grid(alpha=0.3)
        axes.margins(y=0.08)
    for axes in list(figure.axes)[len(tables) :]:
        axes.set_axis_off()
    for row in range(down):
        figure.axes[row * across].set_ylabel("test accuracy (%)")
    labelled = figure.axes[0].get_legend_handles_labels()
    figure.legend(*labelled, loc="outside lower center", ncols=min(len(names), 2 * across + 1), frameon=False)
    with rc_context({"svg.hashsalt": "hf-coop"}), warnings.catch_warnings():  # the same picture is the same bytes
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of other scripts, which matplotlib's font lacks
        for path in paths:
            kind = Path(path).suffix[1:]
            figure.savefig(path, dpi=130, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _is_curve(table: Table) -> bool:
    return len(table.columns) > 1 and all(map(_shots, table.columns))


def _shots(column: str) -> int:
    """The number in "16 shots"; 0 where there is none."""
    found = re.fullmatch(r"(\d+) shots?", column)
    return int(found[1]) if found else 0


def _spread(cell: Cell, ci95: bool) -> float:
    return cell.interval if ci95 else cell.deviation


def _draw_curves(axes: Any, table: Table, names: Sequence[str], ci95: bool) -> None:
    """Accuracy over shots on a scale of doublings; a dashed line where a method looks at no training image."""
    shots = {column: _shots(column) for column in table.columns}
    for number, name in enumerate(names):
        row = table.rows.get(name, {})
        places = [shots[column] for column in table.columns if column in row]
        cells = [row[column] for column in table.columns if column in row]
        means, spreads = [cell.mean for cell in cells], [_spread(cell, ci95) for cell in cells]
        same = len({(cell.mean, cell.seeds) for cell in cells}) == 1 and cells[0].seeds == 1 if cells else False
        style = {"linestyle": "--"} if same else {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        axes.plot(places, means, color=f"C{number}", label=figure_text(name, LONGEST_NAME), **style)
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(shots.values()), [str(number) for number in shots.values()])
    axes.minorticks_off()
    axes.set_xlabel("shots a class")


def _draw_marks(axes: Any, table: Table, names: Sequence[str], ci95: bool) -> None:
    """A mark with an error bar for each method, side by side above the name of the column."""
    for number, name in enumerate(names):
        row = table.rows.get(name, {})
        shift = (number - (len(names) - 1) / 2) * 0.7 / len(names)
        places = [place + shift for place, column in enumerate(table.columns) if column in row]
        cells = [row[column] for column in table.columns if column in row]
        spreads = [_spread(cell, ci95) for cell in cells]
        marker = MARKERS[number % len(MARKERS)]
        axes.errorbar(
            places,
            [cell.mean for cell in cells],
            spreads,
            fmt=marker,
            color=f"C{number}",
            capsize=3,
            markersize=5,
            label=figure_text(name, LONGEST_NAME),
        )
    captions = [figure_text(column, LONGEST_NAME) for column in table.columns]
    turned = {"rotation": 30, "ha": "right"} if sum(map(len, captions)) > 36 else {}
    axes.set_xticks(range(len(captions)), captions, **turned)
    axes.set_xlim(-0.6, len(table.columns) - 0.4)
