"""The folder of an experiment: `results.jsonl`, a line for each run that ended, and what all its runs share."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from ..files import locked_folder, staged_folder
from .protocols import RUN_COLUMNS, Run

RESULTS, EXPERIMENT = "results.jsonl", "experiment.json"
Row = dict[str, Any]


class ResultsFolder:
    """The rows of an experiment, on disk. One process works in a folder at a time: use it as a context manager.

    Each row is appended in one step and is on the disk before the next run's, so that whatever happens, the runs that
    ended are there; half a line at the end, of a process that was killed, is dropped.

    Args:
        folder: of the results; made if needed.

    Attributes:
        rows (`dict[Run, Row]`): what is there.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: another process works in it, or a line is no row of results.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.rows: dict[Run, Row] = {}

    def __enter__(self) -> Self:
        if self.folder.exists() and not self.folder.is_dir():
            raise OSError(f"cannot write results to {str(self.folder)!r}: it is a file, not a folder")
        with ExitStack() as held:
            held.enter_context(locked_folder(self.folder))
            self.rows = {Run.of_row(row): row for row in read_rows(self.folder)}
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def check_same(self, described: Mapping[str, Any]) -> None:
        """Write down what the rows are of, or compare it with what is there. More may come, nothing may change.

        Args:
            described: by name: settings that all runs share, and what is known of each image set.

        Raises:
            ValueError: the folder holds results of another value of one of them.
        """
        path, now = self.folder / EXPERIMENT, json.loads(json.dumps(described))
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if changed := [name for name in now if there.get(name, now[name]) != now[name]]:
            told = "; ".join(f"{name} was {there[name]!r}, now {now[name]!r}" for name in changed)
            raise ValueError(
                f"{str(self.folder)!r} holds results of another experiment ({told}): choose another output_dir. More "
                "sets, methods, shots and seeds may be added to a folder, but what its runs share stays"
            )
        self.write_files({EXPERIMENT: json.dumps(there | now, indent=2) + "\n"})

    def tidy(self, drop_failed: bool) -> None:
        """Drop half a line at the end and, where asked for, the rows of failed runs, so that those are done again."""
        if drop_failed:
            self.rows = {run: row for run, row in self.rows.items() if row["error"] is None}
        self.write_files({RESULTS: "".join(map(_line, self.rows.values()))})

    def add(self, row: Row) -> None:
        """Append a row.

        Raises:
            OSError: there is no room for it; the rows before are whole.
        """
        path = self.folder / RESULTS
        try:
            with path.open("ab", buffering=0) as file:
                size, line = file.tell(), _line(row).encode()
                try:
                    if file.write(line) != len(line):
                        raise OSError("no space left for a whole line")
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise OSError(
                f"cannot write to {str(path)!r}: {error}; the {len(self.rows)} runs that ended are in it. Make room, "
                "and run the same again"
            ) from error
        self.rows[Run.of_row(row)] = row

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write text files into the folder, each whole or not at all."""
        with staged_folder(self.folder) as staging:
            for name, text in files.items():
                Path(staging, name).write_text(text, encoding="utf-8")


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def read_rows(folder: str | os.PathLike[str]) -> list[Row]:
    """The rows in a folder of results; none where it has no `results.jsonl`.

    Raises:
        ValueError: a line other than the last is no row of results; it is named.
    """
    path = Path(folder, RESULTS)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break  # a process was killed while it wrote it
            raise ValueError(f"line {number} of {str(path)!r} is no JSON: {error}") from error
        if not isinstance(row, dict) or not {*RUN_COLUMNS, "results", "error"} <= row.keys():
            raise ValueError(f"line {number} of {str(path)!r} is no row of results")
        rows.append(row)
    return rows
