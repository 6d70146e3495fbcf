"""The guides in docs/: their code runs as it stands, from top to bottom, and does what they say."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from hf_coop_cli import app

DOCS = Path(__file__).parents[2] / "docs"
make_guide = runpy.run_path(str(DOCS / "make_guide.py"))
FIGURES = make_guide["FIGURES"]


def python_blocks(guide: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / guide).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


CHECKS = """
import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import HfArgumentParser
from typer.testing import CliRunner

from hf_coop.tuners import make_prompt_arguments, prompt_options
from hf_coop_cli import app

assert "label_smoothing" not in made_before
parser = HfArgumentParser(make_prompt_arguments())
assert "Probability to spread over all classes. (SmoothCoOp)" in " ".join(parser.format_help().split())
(given,) = parser.parse_args_into_dataclasses(["--method", "smoothcoop", "--label_smoothing", "0.3"])
assert (given.method, prompt_options(given)) == ("smoothcoop", {"label_smoothing": 0.3})

folder = Path("smoothcoop-digits")
config = json.loads((folder / "adapter_config.json").read_text())
assert (config["peft_type"], config["label_smoothing"]) == ("SMOOTHCOOP", 0.2)
assert [name.rsplit(".", 1)[1] for name in load_file(folder / "adapter_model.safetensors")] == ["ctx"]
card = (folder / "README.md").read_text()
assert "SmoothCoOp prompt for CLIP" in card and SmoothCoOpConfig.citation in card and "label_smoothing" in card
info = CliRunner().invoke(app, ["info", str(folder)]).output
assert "SmoothCoOp" in info and "label_smoothing  0.2" in info

trained, loaded = (m.prompt_layer.active_learner.ctx for m in (trainer.model, model))
assert torch.equal(trained, loaded)
history = trainer.state.log_history
assert history[-1]["loss"] < history[0]["loss"]
embeds, labels = torch.randn(3, model.clip.config.projection_dim), torch.tensor([0, 1, 2])
output = model(image_embeds=embeds, labels=labels)
assert torch.equal(output.loss, F.cross_entropy(output.logits, labels, label_smoothing=0.2))

for make in (lambda: SmoothCoOpConfig(label_smoothing=2), lambda: CoOpConfig(label_smoothing=0.1)):
    try:
        make()
    except ValueError as error:
        print(error)
"""


def test_adding_a_method(tmp_path):
    """In a process of its own: PEFT's tables would keep the method."""
    blocks = python_blocks("adding-a-method.md")
    assert len(blocks) == 2
    assert len([line for line in blocks[0].splitlines() if line.strip()]) < 40
    before = "from hf_coop.tuners import make_prompt_arguments as _make\nmade_before = _make().__dataclass_fields__\n"
    (tmp_path / "guide.py").write_text(before + "\n".join(blocks) + CHECKS, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "guide.py"], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "label_smoothing must be at least 0 and below 1, got 2" in done.stdout
    assert "label_smoothing=0.1 is an option of SmoothCoOp, not of CoOp" in done.stdout


def without_printed(page: str) -> str:
    """The page with the number of lines in the place of what cells print: numbers differ from machine to machine."""
    return re.sub(r"```text\n(.*?)```", lambda block: f"{block[1].count(chr(10))} lines", page, flags=re.DOTALL)


def test_how_clip_reads_a_class_name(monkeypatch):
    """The notebook runs, the page is in step with it, and what the page says of its numbers is true here too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = make_guide["run_notebook"]()
    page = make_guide["page_of"](notebook)
    written = make_guide["PAGE"].read_text(encoding="utf-8")
    assert without_printed(page) == without_printed(written), "run `make guide`"
    assert all((FIGURES / name).exists() for name in make_guide["figures_of"](notebook))

    exact = re.findall(r"^(?:EOS, .*|is_causal=True .*) differs by (.*)$", page, re.MULTILINE)
    assert exact == ["0.0e+00"] * 3
    (without_causality,) = re.findall(r"^is_causal=False: EOS differs by (.*)$", page, re.MULTILINE)
    assert float(without_causality) > 0.1
    before, learned, _ = map(float, re.findall(r"test images: ([\d.]+)%", page))
    assert learned > before + 3


def test_figures():
    """They are opaque, so that they can be read on dark pages, not large, and have a text for who cannot see them."""
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    for path in FIGURES.glob("*.png"):
        assert Image.open(path).convert("RGBA").getchannel("A").getextrema() == (255, 255)
        assert path.stat().st_size < 200_000
        assert re.search(rf"!\[[^]]{{40,}}\]\([./]*figures/{path.name}\)", pages), path.name


def test_the_readme_quotes_the_guide():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## How CLIP reads a class name\n")[2].partition("\n## ")[0]
    (quoted,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    page = make_guide["PAGE"].read_text(encoding="utf-8").splitlines()
    assert [line for line in quoted.splitlines() if line not in page] == []


def commands(guide: str) -> list[list[str]]:
    """The arguments of each `hf-coop` command of a guide, as the shell expands them."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", (DOCS / guide).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shell = 'hf-coop() { printf "%s\\n" "$@" ""; }\n' + "\n".join(blocks)
    done = subprocess.run(["bash", "-euc", shell], capture_output=True, text=True, check=True)
    return [command.split("\n") for command in done.stdout.strip("\n").split("\n\n")]


def test_the_experiments_of_the_guide_have_plans(trees, tmp_path, monkeypatch):
    """Each command is one that there is, here with miniature copies of the image sets and without running it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds").mkdir()
    for split in ("train", "test"):
        (tmp_path / "birds" / split).symlink_to(trees / "dtd" / "images")
    plans = [command for command in commands("experiments.md") if command[0] in ("experiment", "base-to-new")]
    assert len(plans) >= 8
    for command in plans:
        done = CliRunner().invoke(app, [part.replace("/data", str(trees)) for part in [*command, "--dry_run"]])
        assert done.exit_code == 0, done.output
        assert " runs, of which 0 ended before: " in done.output
    assert not any(path.suffix == ".jsonl" for path in tmp_path.rglob("*"))
