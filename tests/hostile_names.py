"""Names that somebody chose to break or forge what shows them, and the readers that each output is checked with."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

HOSTILE = [
    "<script>alert(1)</script>",
    '" onload="x',
    "</details></svg> <!-- --> <!-- hf-coop end -->",
    "&lt;b&gt; \\ \\| \\`",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "http://evil.example www.evil.example",
    "a | b || c",
    "`code` **bold** _it_ ~~no~~",
    "# heading\n\n- list\n\n```\ncode\n```",
    "1. one\r\n2. two",
    "---\nlicense: mit\n---",
    "'x' \"y\": yaml, [1, 2] {a: b} !!python/object:os.system &a *a",
    "{{ 7 * 7 }} {% raw %} {# no #} {0} {} %s",
    "$x$",
    r"price $5, $\frac{",
    r"back\slash_$x^2$ \$",
    r"\input{/etc/passwd} \\ & % ~ ^ # _",
    "[2pt] * -- ?` ''",
    "_not in a legend",
    "=cmd|' /C calc'!A1",
    "+1-2",
    "@SUM(A1)",
    "-- --help",
    "/etc/passwd",
    "../../../tmp/x",
    "..",
    "CON",
    "\x1b[31mred\x1b[0m\x07\x00",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]0;title\x07\x9b2J",
    "\u202egnp.txt\u202c \u2066iso\u2069 \u200fmark",
    "zero\u200bwidth\ufeff\u00adsoft",
    "line\u2028separator\u2029\x85end",
    "[red]rich[/red] [/bold] :smile:",
    "your-name/your-adapter",
    "日本 שלום नमस्ते 🙂",
    "w" * 48,
]
#: Characters that no output but JSON may have: those that a terminal obeys, and marks that turn the direction.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
)


class Page(HTMLParser):
    """Tags and attributes as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def check_harmless(self) -> None:
        """No tag or attribute that runs code, or that loads something from elsewhere."""
        assert not {tag for tag, _ in self.tags} & {"script", "iframe", "link", "object", "a"}
        for tag, attributes in self.tags:
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            for name in ("src", "href", "xlink:href"):
                assert (attributes.get(name) or "#").startswith(("data:image/", "#")), (tag, attributes)
        assert not OBEYED.search(self.text)


def rendered(markdown: str) -> list[tuple[str, str]]:
    """`(kind, text)` of each inline piece of a document, as CommonMark with tables reads it."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    pieces = []
    for block in parser.parse(markdown):
        if block.type in ("html_block", "fence"):
            pieces.append((block.type, block.content))
        for inline in block.children or []:
            pieces.append((inline.type, inline.content))
    return pieces


def table_cells(markdown: str, heading: str = "") -> list[str]:
    """The text of each cell of the first table under a heading."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown.split(f"## {heading}")[1])
    inside, cells = False, []
    for token in tokens:
        if token.type == "table_close":
            break
        if token.type == "inline" and inside:
            cells.append("".join(child.content for child in token.children))
        inside = token.type in ("td_open", "th_open")
    return cells


def check_markdown(markdown: str, *allowed: str) -> None:
    """No HTML, link, picture or emphasis in it but what is allowed, and nothing that a terminal obeys."""
    assert not OBEYED.search(markdown)
    markup = {"html_inline", "html_block", "image", "link_open", "em_open", "s_open", "strong_open", "code_inline"}
    assert {kind for kind, _ in rendered(markdown)} & markup <= {*allowed}


def check_terminal(output: str) -> None:
    """Nothing that a terminal obeys, but for the carriage returns of progress bars."""
    assert not (found := OBEYED.search(output.replace("\r", "\n"))), repr(output[found.start() - 80 : found.end()])


def front_matter(card: str) -> dict:
    """The metadata of a card, read by PyYAML and by the Hub's client alike."""
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert ModelCard(card).data.to_dict() == metadata
    return metadata


def latex_cells(table: str) -> list[list[str]]:
    """The cells of a LaTeX table as they are set, by a reader of the commands that names may be made of."""
    assert not OBEYED.search(table)
    body = table.split("\\toprule\n")[1].split("\n\\bottomrule")[0].replace("\\midrule\n", "")
    return [[latex_shown(cell.strip()) for cell in cells(row)] for row in body.split(" \\\\\n") if row]


def cells(row: str) -> list[str]:
    return re.split(r"(?<!\\)&", row.removesuffix(" \\\\"))


def latex_shown(text: str) -> str:
    r"""What LaTeX sets for `text`: escapes, braces, and `\text…{}` alone; anything else is an error."""
    text = re.sub(r"\\textbf\{(.*)\}$", r"\1", text)
    if text == "--":  # what was not measured
        return text
    named = {"asciitilde": "~", "asciicircum": "^", "backslash": "\\", "less": "<", "greater": ">", "bar": "|"}
    text = text.replace(r"$\pm$", "±").replace("{}", "\x00")  # an empty group ends a command, or parts a ligature
    shown, depth, place = "", 0, 0
    piece = re.compile(r"\\text([a-z]+)\x00|\\([&%$#_{}])|([{}])|(\x00)|([^\\&%$#_{}~^])")
    while place < len(text):
        found = piece.match(text, place)
        assert found, f"{text[place:]!r} is a command or a character of LaTeX's own"
        assert not text.startswith(("[", "*"), place) or depth, "\\\\ would take it"
        assert not re.match(r"--|''|,,", text[place:]), "a ligature"
        name, escaped, brace, _, plain = found.groups()
        depth += {"{": 1, "}": -1}.get(brace or "", 0)
        assert depth >= 0
        shown += named[name] if name else escaped or plain or ""
        place = found.end()
    assert depth == 0
    return shown
