"""How the house is laid out: imports point one way, and no module is too long to read."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.glob("hf_coop/**/*.py"))
}
# A module imports from its own room and from rooms that stand before it here, never from a later one.
ROOMS = [
    *("version", "escaping", "errors", "files", "pretrained", "encoding", "tuners", "demo", "data", "evaluation"),
    *("hub", "prediction", "modeling", "data.features", "training", "serving", "experiments"),
]
MAX_LINES = 400


def room_of(module: str) -> int:
    """The place of a module's room in `ROOMS`; the package itself, its public face, comes last."""
    inside = module.removeprefix("hf_coop").lstrip(".")
    rooms = [room for room in ROOMS if f"{inside}.".startswith(f"{room}.")]
    assert rooms or not inside, f"{module} is in no room of the list"
    return ROOMS.index(max(rooms, key=len)) if rooms else len(ROOMS)


def imported_modules(module: str) -> set[str]:
    """The modules of hf-coop that a module imports, wherever in it, for type checkers alone too."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else source for name in names}
    return {name for name in found if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    if module == "hf_coop":
        return
    later = {name for name in imported_modules(module) if room_of(name) > room_of(module)}
    assert not later, f"{module} stands before {later}, so it cannot import from there"


def test_no_circle_of_imports():
    """Also within a room. A package's door is left out: what is in a room imports from its neighbours, not from it."""
    graph = {module: imported_modules(module) for module in MODULES if MODULES[module].name != "__init__.py"}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join([*way[way.index(module) :], module])
        if module in done or module not in graph:
            return
        for name in graph[module]:
            visit(name, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())
    assert done == graph.keys()


def test_the_doors_lead_inside():
    """A door imports from its own room and earlier ones; a room's inside never goes through its own door."""
    for module in MODULES:
        package = module.rpartition(".")[0]
        if package and MODULES[module].name != "__init__.py":
            assert package not in imported_modules(module), f"{module} imports from its own room's door"


def test_no_module_is_long():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in SOURCE.rglob("*.py")}
    long = {str(path.relative_to(SOURCE)): count for path, count in lines.items() if count > MAX_LINES}
    assert not long, "are they still one thing?"


def test_every_room_says_what_it_is_for():
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{module} has no docstring"


def test_the_list_has_every_room_once():
    rooms = {module.split(".")[1] for module in MODULES if "." in module}
    assert rooms == {room for room in ROOMS if "." not in room}
    assert all(before != after for before, after in pairwise(ROOMS))
