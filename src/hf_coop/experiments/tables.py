"""Tables of results as the papers print them: a row for each method, averages over sets, the best in bold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..escaping import latex_text, markdown_text
from .methods import find_method
from .protocols import NOT_LEARNED, RUN_COLUMNS, Protocol, context_suffix, find_protocol, shots_name

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = "average"
HARMONIC_MEAN = "H"
MISSING = "–"
LATEX_SIGNS = str.maketrans({"±": r"$\pm$", MISSING: "--"})
BySeed = dict[int, float]  # accuracies


@dataclass(frozen=True)
class Cell:
    """Accuracy in % over seeds.

    Attributes:
        mean, deviation (`float`): the latter over seeds (of the population), as the papers report it.
        seeds (`int`): how many.
    """

    mean: float
    deviation: float = 0.0
    seeds: int = 1

    @property
    def interval(self) -> float:
        """Half of the 95 % confidence interval of the mean, `1.96 * deviation / sqrt(seeds)`."""
        return 1.96 * self.deviation / self.seeds**0.5

    def shown(self, ci95: bool = False) -> str:
        """To a tenth, with its spread where there are several seeds."""
        spread = self.interval if ci95 else self.deviation
        return f"{self.mean:.1f} ± {spread:.1f}" if self.seeds > 1 else f"{self.mean:.1f}"


@dataclass
class Table:
    """One table of an experiment.

    Attributes:
        title (`str`): the set, or "average over 11 sets".
        columns (`list[str]`): their headings.
        rows (`dict[str, dict[str, Cell]]`): by method, then by column; what is not there was not measured.
        notes (`list[str]`): lines below it.
    """

    title: str
    columns: list[str]
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def markdown(self, ci95: bool = False) -> str:
        """As a Markdown table below its title."""
        lines = self._lines(ci95, markdown_text, "**{}**")
        rule = ["---", *["---:"] * len(self.columns)]
        body = "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
        return "\n\n".join([f"## {markdown_text(self.title)}", body, *self.notes]) + "\n"

    def latex(self, ci95: bool = False) -> str:
        """As a LaTeX table for the package booktabs."""
        lines = [" & ".join(line) + r" \\" for line in self._lines(ci95, latex_text, r"\textbf{{{}}}", LATEX_SIGNS)]
        rule = f"\\begin{{tabular}}{{l{'r' * len(self.columns)}}}"
        inner = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        caption = latex_text(" ".join([f"{self.title}.", *self.notes]))
        parts = [r"\begin{table}", r"\centering", f"\\caption{{{caption}}}", rule, *inner, r"\end{tabular}"]
        return "\n".join([*parts, r"\end{table}"]) + "\n"

    def _lines(self, ci95: bool, escape: Any, bold: str, signs: Mapping[int, str] = {}) -> list[list[str]]:
        lines = [["", *map(escape, self.columns)]]
        best = {
            column: max((f"{row[column].mean:.1f}" for row in self.rows.values() if column in row), key=float)
            for column in self.columns
            if any(column in row for row in self.rows.values())
        }
        for name, row in self.rows.items():
            cells = []
            for column in self.columns:
                shown = (row[column].shown(ci95) if column in row else MISSING).translate(signs)
                is_best = column in row and f"{row[column].mean:.1f}" == best[column] and len(self.rows) > 1
                cells.append(bold.format(shown) if is_best else shown)
            lines.append([escape(name), *cells])
        return lines


def long_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A line for each result of each run that did not fail: the run's columns, then what was measured.

    `value` is the accuracy in %.
    """
    import pandas as pd

    measured = ("tested_on", "classes", "accuracy", "top5_accuracy", "macro_f1", "ece", "num_samples")
    lines = [
        {**{name: row[name] for name in RUN_COLUMNS}, **{name: result[name] for name in measured}}
        for row in rows
        if row["error"] is None
        for result in row["results"]
    ]
    frame = pd.DataFrame(lines, columns=[*RUN_COLUMNS, *measured])
    frame["value"] = 100 * frame["accuracy"]
    return frame


def make_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables of the rows of one experiment: the average over its sets first, then each set.

    The mean over sets is taken seed by seed, and only where every set has that seed. The harmonic mean of base and new
    is that of their means, as in the papers.

    Args:
        rows: as `results.jsonl` has them, in the order in which sets and methods are to stand.
    """
    frame = long_frame(rows)
    if frame.empty:
        return []
    protocol = find_protocol(frame["protocol"].iloc[0])
    frame["row"] = _row_names(frame, protocol)
    frame["column"] = frame[protocol.columns]
    sets = list(dict.fromkeys(frame["dataset"]))
    tables = [_table(name, frame[frame["dataset"] == name], protocol) for name in sets]
    if len(sets) > 1 and protocol.columns != "tested_on":
        keys = ["row", "column", "seed"]
        grouped = frame.groupby(keys, sort=False)["value"].agg(["mean", "count"]).reset_index()
        whole = grouped[grouped["count"] == len(sets)].rename(columns={"mean": "value"})
        tables.insert(0, _table(f"{AVERAGE} over {len(sets)} sets", whole, protocol))
    return tables


def _row_names(frame: pd.DataFrame, protocol: Protocol) -> list[str]:
    """What the row of each line is called: the method, with its context and shots where these vary."""
    learned = frame[frame["shots"] != NOT_LEARNED]
    several_shots = protocol.columns != "shots" and learned["shots"].nunique() > 1
    prompts = frame[[find_method(name).is_prompt for name in frame["method"]]]
    compared = protocol is find_protocol("context") or len(prompts[["n_ctx", "ctx_init"]].drop_duplicates()) > 1
    names = []
    for line in frame.to_dict("records"):
        name = find_method(line["method"]).label
        if compared:  # pandas has NaN for None beside numbers
            length, words = line["n_ctx"], line["ctx_init"]
            name += context_suffix(
                int(length) if length == length and length else None, words if isinstance(words, str) else None
            )
        if several_shots and line["shots"]:
            name += f", {shots_name(line['shots'])}"
        names.append(name)
    return names


def _table(title: str, frame: pd.DataFrame, protocol: Protocol) -> Table:
    """The table of one set, or of the average."""
    values: dict[str, dict[Any, BySeed]] = {
        row: {column: dict(zip(part["seed"], part["value"], strict=True)) for column, part in lines.groupby("column")}
        for row, lines in frame.groupby("row", sort=False)
    }
    if protocol.columns == "shots":
        headings = _over_shots(values)
    elif protocol.columns == "classes":
        headings = {name: name for name in ("base", "new", HARMONIC_MEAN)}
    else:
        source = frame["dataset"].iloc[0]
        title = f"learned on {source}"
        headings = _over_targets(values, source, list(dict.fromkeys(frame["column"])))
    table = Table(title, list(headings.values()))
    for row, found in values.items():
        cells = {headings[column]: _cell(seeds) for column, seeds in found.items() if column in headings}
        if {"base", "new"} <= found.keys():
            cells[HARMONIC_MEAN] = _harmonic_cell(found["base"], found["new"])
        table.rows[row] = cells
    return table


def _over_shots(values: dict[str, dict[Any, BySeed]]) -> dict[Any, str]:
    """The columns by shots; what looks at no image is the same in all of them."""
    columns = sorted({shots for row in values.values() for shots in row} - {NOT_LEARNED}) or [NOT_LEARNED]
    for row in values.values():
        if NOT_LEARNED in row:
            row |= dict.fromkeys(columns, row[NOT_LEARNED])
    return {shots: shots_name(shots) if shots else "no shots" for shots in columns}


def _over_targets(values: dict[str, dict[Any, BySeed]], source: str, tested_on: Sequence[str]) -> dict[Any, str]:
    """The columns by set: the one that was learned on, the others, and their mean, taken seed by seed."""
    others = [name for name in tested_on if name != source]
    for row in values.values():
        if others and all(name in row for name in others):
            seeds = [seed for seed in row[others[0]] if all(seed in row[name] for name in others)]
            row[AVERAGE] = {seed: float(np.mean([row[name][seed] for name in others])) for seed in seeds}
    return {name: name for name in (source, *others)} | {AVERAGE: f"{AVERAGE} of the others"}


def _cell(by_seed: Mapping[int, float]) -> Cell:
    values = list(by_seed.values())
    return Cell(float(np.mean(values)), float(np.std(values)), len(values))


def harmonic_mean(base: float, new: float) -> float:
    """Of two accuracies; 0 where one is."""
    return 2 * base * new / (base + new) if base and new else 0.0


def _harmonic_cell(base: Mapping[int, float], new: Mapping[int, float]) -> Cell:
    """Of the means; its deviation is that of the harmonic means of the seeds."""
    values = [harmonic_mean(base[seed], new[seed]) for seed in base if seed in new]
    means = [float(np.mean(list(half.values()))) for half in (base, new)]
    return Cell(harmonic_mean(*means), float(np.std(values)) if values else 0.0, len(values))
