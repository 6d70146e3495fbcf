"""Runs docs/how-clip-reads-a-class-name.ipynb and writes it as a page with its figures: `make guide`."""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent
NOTEBOOK = DOCS / "how-clip-reads-a-class-name.ipynb"
PAGE = NOTEBOOK.with_suffix(".md")
FIGURES = DOCS / "figures"


def run_notebook(path: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """The notebook with its outputs, from a kernel of its own.

    Raises:
        CellExecutionError: a cell fails; its code and traceback are in the message.
    """
    notebook = nbformat.read(path, as_version=4)
    return NotebookClient(notebook, timeout=120, kernel_name="python3", coalesce_streams=True).execute()


def page_of(notebook: nbformat.NotebookNode) -> str:
    """The notebook as Markdown: what cells print is in blocks of `text`, figures are in `figures/`.

    A cell that draws has the name of its figure and the text for those who cannot see it in its metadata.
    """
    parts = []
    for cell in notebook.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stdout":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.get("data", {}):
                parts.append(f"![{cell.metadata.alt}](figures/{cell.metadata.figure}.png)")
    return "\n\n".join(parts) + "\n"


def figures_of(notebook: nbformat.NotebookNode) -> dict[str, bytes]:
    """File name and PNG of each figure."""
    return {
        f"{cell.metadata.figure}.png": base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }


if __name__ == "__main__":
    executed = run_notebook()
    FIGURES.mkdir(exist_ok=True)
    for name, png in figures_of(executed).items():
        (FIGURES / name).write_bytes(png)
    PAGE.write_text(page_of(executed), encoding="utf-8")
