"""Every code block of README and docs: Python runs, on the embedded model; the arguments of commands are parsed."""

from __future__ import annotations

import argparse
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from loopback_hub import HubServer
from markdown_it import MarkdownIt
from transformers import HfArgumentParser

from hf_coop.demo import DEMO_CLIP
from hf_coop.training.options import OptionParser
from hf_coop_cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_ELSEWHERE = {"adding-a-method.md", "how-clip-reads-a-class-name.md", "serving.md"}  # their Python, by other tests
LANGUAGES = {"bash", "python", "text", ""}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def code_blocks() -> Iterator[Block]:
    for path in PAGES:
        for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
            if token.type == "fence":
                yield Block(str(path.relative_to(ROOT)), token.map[0] + 2, token.info, token.content)


def inline_scripts() -> Iterator[Block]:
    """`python benchmarks/….py …` in the text."""
    for path in PAGES:
        for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
            for child in token.children or []:
                if child.type == "code_inline" and re.match(r"python \w+/\w+\.py", child.content):
                    yield Block(str(path.relative_to(ROOT)), token.map[0] + 1, "bash", child.content)


BLOCKS = list(code_blocks())
COMMANDS = [block for block in BLOCKS if block.language == "bash"] + list(inline_scripts())


def test_languages():
    assert {block.language for block in BLOCKS} <= LANGUAGES
    assert len(COMMANDS) > 10


class Parsed(BaseException):
    """The arguments are understood; nothing more is to happen."""


PARSERS = [
    (OptionParser, "parse"),
    (HfArgumentParser, "parse_args_into_dataclasses"),
    (argparse.ArgumentParser, "parse_args"),
]


def parse_and_stop(parse: Any) -> Any:
    def parse_arguments(*args: Any, **kwargs: Any) -> NoReturn:
        parse(*args, **kwargs)
        raise Parsed

    return parse_arguments


def run_script(script: str, *arguments: str) -> None:
    path = ROOT / script
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def hf_coop(*arguments: str) -> None:
    """The command, each part of which stops where its arguments are parsed."""
    group = typer.main.get_command(app)
    parts = [group]
    for part in parts:
        if commands := getattr(part, "commands", None):
            parts += commands.values()
        elif not part.context_settings.get("ignore_unknown_options"):  # else a script parses them
            part.callback = parse_and_stop(lambda **parsed: None)
    group.main(list(arguments), standalone_mode=False)


def make(*targets: str) -> NoReturn:
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets) <= set(known), targets
    raise Parsed


def accelerate(launch: str, *arguments: str) -> None:
    assert launch == "launch"
    parsed, _ = launch_command_parser().parse_known_args(list(arguments))  # what follows the script is the script's
    run_script(parsed.training_script, *parsed.training_script_args)


def nothing_to_parse(*arguments: str) -> NoReturn:
    raise Parsed


PROGRAMS = {
    "hf-coop": hf_coop,
    "python": run_script,
    "accelerate": accelerate,
    "make": make,
    "pip": nothing_to_parse,
    "export": nothing_to_parse,
    "curl": nothing_to_parse,
}


def expanded(block: Block) -> list[list[str]]:
    """The block's commands as bash expands them; programs that are not in `PROGRAMS` are not found."""
    programs = "".join(f"{name}() {{ printf '%s\\0' {name} \"$@\" $'\\n'; }}\n" for name in PROGRAMS)
    bash = [shutil.which("bash") or "bash", "-euc", programs + block.text]
    done = subprocess.run(bash, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.place}: say in PROGRAMS how to check it: {done.stderr}"
    return [command.split("\0")[:-1] for command in done.stdout.split("\n\0")[:-1]]


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.place)
def test_commands(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "train", raising=False)
    for parser, name in PARSERS:
        monkeypatch.setattr(parser, name, parse_and_stop(getattr(parser, name)))
    for program, *arguments in expanded(block):
        with pytest.raises(Parsed):
            PROGRAMS[program](*arguments)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("hf-coop train --no_such_option 1", "no_such_option"),
        ("hf-coop predict coop-flowers", "Missing argument"),
        ("hf-coop nothing", "nothing"),
    ],
)
def test_wrong_commands_are_found(command, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        test_commands(Block("here", 1, "bash", command), monkeypatch)
    assert message in capsys.readouterr().err


GIVEN = """
import sys
from pathlib import Path

import torch
from datasets import Dataset

from hf_coop import HFCoOp
from hf_coop.demo import load_digits_dataset
from hf_coop.experiments import Experiment, run_experiment
from hf_coop.hub import push_folder

CLASSNAMES = ["pink primrose", "globe thistle"]
pool = load_digits_dataset()["train"]
for split, first in (("train", 0), ("test", 60)):
    for label, name in enumerate(CLASSNAMES):
        folder = Path("flowers", split, name)
        folder.mkdir(parents=True)
        for number, row in enumerate(r for r in pool.select(range(first, first + 60)) if r["label"] == label):
            row["image"].save(folder / f"{number}.png")
images = pool["image"][:4]
images[0].save("flower.jpg")
pixel_values, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 0, 1])
few_shot = {"benchmark": ["demo"], "methods": ["coop"], "shots": [16], "seeds": [1], "save_prompts": True}
run_experiment(Experiment("few-shot", "outputs/few-shot", **few_shot, training={"max_text_passes": 2}))
push_folder("outputs/few-shot/prompts", "tester/digit-prompts")
rows = [{"pixel_values": p, "labels": label} for p, label in zip(pixel_values, labels, strict=True)]


def what_readers_have():
    dataset = Dataset.from_dict({"image": images, "label": labels.tolist()})
    return {
        "model": HFCoOp.from_clip("tester/clip-vit-base-patch16", CLASSNAMES, n_ctx=4),
        "pixel_values": pixel_values,
        "labels": labels,
        "dataset": dataset,
        "train_dataset": dataset,
        "eval_dataset": dataset,
        "frames_of_a_camera": lambda: iter(images),
        "rows_of_pixel_values_and_labels": rows,
    }


def start_page(names):
    for name in [name for name in names if not name.startswith("__") and name != "given"]:
        del names[name]


def run_block(place, text, names):
    names.update(what_readers_have())
    print(place, file=sys.stderr)
    exec(compile("\\n" * (int(place.rpartition(":")[2]) - 1) + text, place, "exec"), names)
"""
SUBSTITUTES = {'"openai/': '"tester/', '"user/': '"tester/'}  # the names on the Hub of the test


def test_python_blocks(tmp_path, trees):
    """In one process, each page from top to bottom; its Hub has the embedded CLIP under the name of a real one."""
    script, pages = ["import given"], []
    for block in BLOCKS:
        if block.language != "python" or Path(block.page).name in RUN_ELSEWHERE:
            continue
        if block.page not in pages:
            pages.append(block.page)
            script.append("given.start_page(globals())")
        text = block.text.replace('"/data"', repr(str(trees)))
        for real, ours in SUBSTITUTES.items():
            text = text.replace(real, ours)
        script.append(f"given.run_block({block.place!r}, {text!r}, globals())")
    assert {"README.md", "docs/index.md", "docs/benchmarks.md"} <= set(pages)
    (tmp_path / "given.py").write_text(GIVEN, encoding="utf-8")
    (tmp_path / "blocks.py").write_text("\n".join(script), encoding="utf-8")
    with HubServer(tmp_path / "hub") as hub, pytest.MonkeyPatch.context() as patch:
        hub.add("tester/clip-vit-base-patch16", DEMO_CLIP)
        patch.chdir(tmp_path)
        done = hub.run(tmp_path / "home", "blocks.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.repos["tester/coop-flowers"].private
