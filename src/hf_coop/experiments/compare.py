"""`hf-coop results`: folders of results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .results import RESULTS, read_rows
from .tables import Cell, Table, long_frame

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("protocol", "dataset", "method", "shots", "n_ctx", "ctx_init", "tested_on", "classes", "seed")


def compare_results(folders: Sequence[str | Path], by: Sequence[str] = ("method", "shots")) -> Table:
    """A row for each value of some columns and a column for each folder, with the mean accuracy over all else.

    Where several folders have a row, it is taken over the results that all of these have, so that like is compared
    with like; with two folders, a column says by how much the second is ahead.

    Args:
        folders: of experiments.
        by: columns of the results: "method", "shots", "dataset", "tested_on", "classes", "seed", ….

    Raises:
        ValueError: there is no such column, or a folder has no results.
    """
    if unknown := [name for name in by if name not in COLUMNS]:
        raise ValueError(f"no column {unknown[0]!r} to compare by; there are {', '.join(COLUMNS)}")
    names = _short_names(folders)
    frames = dict(zip(names, map(_frame, folders), strict=True))
    table = Table(f"accuracy in % by {', '.join(by)}", list(names))
    others = [name for name in COLUMNS if name not in by]
    groups = {name: _groups(frame, list(by), others) for name, frame in frames.items()}
    left_out = 0
    for key in dict.fromkeys(key for found in groups.values() for key in found):
        cells = {name: found[key] for name, found in groups.items() if key in found}
        common = set.intersection(*({*values} for values in cells.values()))
        left_out += sum(len(values) - len(common) for values in cells.values())
        if common:
            row = {
                name: _over_seeds({cell: values[cell] for cell in common}, others) for name, values in cells.items()
            }
            table.rows[", ".join(f"{value}" for value in key)] = row
    if len(names) == 2:
        _add_difference(table, *names)
    if left_out:
        table.notes.append(f"{left_out} results that only some of the folders have are left out.")
    return table


def _short_names(folders: Sequence[str | Path]) -> list[str]:
    last = [Path(folder).name for folder in folders]
    return last if len({*last}) == len(last) else [str(folder) for folder in folders]


def _frame(folder: str | Path) -> pd.DataFrame:
    frame = long_frame(read_rows(folder))
    if frame.empty:
        raise ValueError(f"no results in {str(folder)!r}: a folder of results holds {RESULTS}")
    return frame.fillna({"n_ctx": 0, "ctx_init": ""})


def _groups(frame: pd.DataFrame, by: list[str], others: list[str]) -> dict[tuple, dict[tuple, float]]:
    """Accuracies by all the other columns, by the columns that are compared by."""
    return {
        key: {tuple(line[name] for name in others): line["value"] for line in lines.to_dict("records")}
        for key, lines in frame.groupby(by)
    }


def _over_seeds(values: dict[tuple, float], others: Sequence[str]) -> Cell:
    """The mean over sets of each seed, then over the seeds."""
    seed = others.index("seed") if "seed" in others else None
    by_seed: dict[int, list[float]] = {}
    for cell, value in values.items():
        by_seed.setdefault(0 if seed is None else cell[seed], []).append(value)
    means = [float(np.mean(found)) for found in by_seed.values()]
    return Cell(float(np.mean(means)), float(np.std(means)), len(means))


def _add_difference(table: Table, first: str, second: str) -> None:
    """A column with the second folder's mean less the first's."""
    column = f"{second} - {first}"
    table.columns.append(column)
    for row in table.rows.values():
        if first in row and second in row:
            row[column] = Cell(row[second].mean - row[first].mean)
