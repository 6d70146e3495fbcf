"""Names that strangers chose, put where people read them: one function for each kind of output.

Class names, folders, data sets and models may hold control characters, escape sequences, markup and marks that turn
the direction of writing. Each function gives what shows a name as plain text, on one line of its kind of output. JSON
and YAML need none: their writers escape.
"""

from __future__ import annotations

import html
import re
from typing import TextIO

JOINERS = "\u200c\u200d"  # unprintable, but part of words in some scripts
MARKDOWN = re.compile(r"(^[-+=]|[!\"#$&()*.:<>@\[\\\]^_`{|}~])")
LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{character: f"{{{character}}}" for character in "[]*`"},  # which \\ would take, or a quotation mark
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)
LIGATURE = re.compile(r"([-',])(?=\1)")
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes a cell for that begins so
MAX_NAME_BYTES = 200  # of a file; most file systems take 255
NOT_IN_NAMES = '<>:"/\\|?*'  # Windows; the slash everywhere
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}  # Windows


def one_line(text: str) -> str:
    """`text` on one line, without characters that cannot be seen or that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() or c in JOINERS else " " for c in text).split())


def tell(text: str, file: TextIO | None = None) -> None:
    """Print `text` on one line, at once; to the standard output unless told."""
    print(one_line(text), file=file, flush=True)


def html_text(text: str) -> str:
    """HTML, also within the quotes of an attribute."""
    return html.escape(one_line(text))


def markdown_text(text: str) -> str:
    """Markdown, also within a cell of a table: no markup, HTML, link or formula in it."""
    return MARKDOWN.sub(r"\\\1", one_line(text))


def latex_text(text: str) -> str:
    """LaTeX, also within a cell of a table. Other scripts than the Latin need LuaLaTeX or XeLaTeX."""
    return LIGATURE.sub(r"\1{}", one_line(text).translate(LATEX))


def figure_text(text: str, longest: int | None = None) -> str:
    """Text of a matplotlib figure: never a formula, never left out of a legend, and cut where it is long."""
    line = one_line(text)
    if longest is not None and len(line) > longest:
        line = f"{line[: longest - 1].rstrip()}…"
    line = line.replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def csv_text(text: str) -> str:
    """A cell of a CSV table: one that a spreadsheet would take for a formula gets an apostrophe in front."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA) else line


def file_name(text: str) -> str:
    """The name of one file or folder, on any system: it leads nowhere else."""
    printable = "".join("_" if c in NOT_IN_NAMES or not c.isprintable() else c for c in text)
    name = printable.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .") or "_"
    return f"{name}_" if name.split(".")[0].casefold() in RESERVED else name
