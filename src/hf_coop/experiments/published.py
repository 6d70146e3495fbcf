"""What the papers report: averages over their 11 image sets with ViT-B/16, to be shown beside one's own."""

from __future__ import annotations

import json
from pathlib import Path

from .tables import Cell, Table


def published_table(protocol: str) -> Table | None:
    """The papers' averages of a protocol with their source; None where none are kept."""
    kept = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    if protocol not in kept:
        return None
    columns, source = kept[protocol]["columns"], kept[protocol]["source"]
    rows = {
        name: {column: Cell(value) for column, value in zip(columns, values, strict=True)}
        for name, values in kept[protocol]["rows"].items()
    }
    title = "what the papers report: average over their 11 sets, ViT-B/16"
    return Table(title, list(columns), rows, [f"Source: {source}."])
