"""Predictions as text, JSON or CSV, a line an image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..escaping import csv_text
from .classify_files import Result


def json_line(path: Path | str, result: Result) -> str:
    """One JSON object: `image`, and `predictions` or `error`."""
    row = {"error": str(result)} if isinstance(result, ValueError) else {"predictions": result}
    return json.dumps({"image": str(path), **row})


def csv_header(top_k: int) -> str:
    """The names of the columns of `csv_line`: `image`, `label`, `score`, `label_2`, `score_2`, …, `error`."""
    ranks = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
    return _csv(["image", *(f"{name}{rank}" for rank in ranks for name in ("label", "score")), "error"])


def csv_line(path: Path | str, result: Result, top_k: int) -> str:
    """A row for one image; cells of ranks that it does not have are empty.

    Names are on one line, and none is a formula of a spreadsheet ([`csv_text`]); `json_line` has them as they are.

    Args:
        path: of the image.
        result: as `classify_files` gives it.
        top_k (`int`): ranks that `csv_header` names.
    """
    predictions: list[dict[str, Any]] = [] if isinstance(result, ValueError) else result
    cells = [cell for row in predictions for cell in (row["label"], row["score"])]
    cells += [""] * (2 * top_k - len(cells))
    return _csv([str(path), *cells, str(result) if isinstance(result, ValueError) else ""])


def _csv(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([csv_text(cell) if isinstance(cell, str) else cell for cell in cells])
    return line.getvalue()
