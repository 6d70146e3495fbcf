"""What an experiment leaves to be read: tables as Markdown and LaTeX, curves, and the list of the prompts kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..errors import some
from ..escaping import markdown_text, tell
from ..files import staged_folder
from .curves import plot_tables
from .experiment import PROMPTS, Experiment
from .prompts import write_index
from .protocols import Run, find_protocol
from .published import published_table
from .results import ResultsFolder, Row
from .tables import make_tables


def write_report(experiment: Experiment, results: ResultsFolder) -> None:
    """Tables and curves of all rows in the folder, also of those that an earlier plan asked for."""
    rows = _in_order(experiment, list(results.rows.values()))
    failed = [row for row in rows if row["error"] is not None]
    tables = make_tables(rows)
    if tables:
        model = "the embedded CLIP" if experiment.model_name_or_path == "demo" else experiment.model_name_or_path
        title = f"{find_protocol(experiment.protocol).title}, {model}"
        spread = "half of the 95 % confidence interval" if experiment.ci95 else "standard deviation"
        seeds = ", ".join(map(str, sorted({row["seed"] for row in rows if row["shots"]})))
        about = f"Test accuracy in %, mean ± {spread} over seeds {seeds}." if seeds else "Test accuracy in %."
        shown = [*tables, *filter(None, [published_table(experiment.protocol) if experiment.published else None])]
        heading = f"# {markdown_text(title)}\n\n{about}\n"
        markdown = "\n".join([heading, *(table.markdown(experiment.ci95) for table in shown)])
        with staged_folder(results.folder) as staging:
            Path(staging, "tables.md").write_text(markdown, encoding="utf-8")
            latex = "\n".join(table.latex(experiment.ci95) for table in shown)
            Path(staging, "tables.tex").write_text(f"% {about} Needs the package booktabs.\n{latex}", encoding="utf-8")
            plot_tables(tables, title, experiment.ci95, [Path(staging, f"curves.{kind}") for kind in ("png", "svg")])
        print(f"\n{shown[0].markdown(experiment.ci95)}")
    if experiment.save_prompts:
        write_index(results.folder / PROMPTS, rows)
    tell(f"{len(rows) - len(failed)} runs are in {results.folder}: results.jsonl, tables.md, tables.tex, curves.png")
    if failed:
        tell(
            f"{len(failed)} runs failed ({some(Run.of_row(row) for row in failed)}); results.jsonl has their errors, "
            "and --retry_failed does them again",
            sys.stderr,
        )


def _in_order(experiment: Experiment, rows: list[Row]) -> list[Row]:
    """The rows in the order of the plan, those of earlier plans behind."""
    places = {run: place for place, run in enumerate(experiment.runs)}
    sets = [*dict.fromkeys([*(source.name for source in experiment.learned_on), *sorted(r["dataset"] for r in rows)])]
    methods = [*dict.fromkeys([*experiment.methods, *sorted(row["method"] for row in rows)])]

    def place(row: Row) -> tuple[Any, ...]:
        run = Run.of_row(row)
        behind = places.get(run, len(places))
        return (
            sets.index(run.dataset),
            methods.index(run.method),
            behind,
            run.shots,
            run.seed,
            run.n_ctx or 0,
            str(run),
        )

    return sorted(rows, key=place)
