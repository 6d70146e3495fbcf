"""Where users of the `hf` command already are: its extensions, its skills, and scripts that say what they need."""

from __future__ import annotations

import inspect
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from hf_coop import CoOpTrainingArguments
from hf_coop.tuners import make_prompt_arguments
from hf_coop_cli import app

ROOT = Path(__file__).parents[2]
SKILL = ROOT / "skills" / "train-few-shot-clip"

# Loaded by the client when it starts. GitHub is this repository, the rest of the client is as it is.
GITHUB = f"""
from pathlib import Path
import huggingface_hub
try:
    import httpx2 as httpx
except ModuleNotFoundError:  # with huggingface_hub 1
    import httpx

def answer(request):
    path = request.url.path
    if path == "/someone/hf-coop" and request.method == "HEAD":
        return httpx.Response(200)
    if path.endswith("/info/refs"):
        return httpx.Response(200, text="{"a" * 40} HEAD\\0")
    file = Path({str(ROOT)!r}, path.removeprefix("/someone/hf-coop/HEAD/"))
    return httpx.Response(200, content=file.read_bytes()) if file.is_file() else httpx.Response(404)

huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(answer)))
"""

# In the place of `uv`: this repository instead of its archive on GitHub, and the libraries that are installed here.
UV = f"""#!{sys.executable}
import subprocess, sys
if sys.argv[1] == "venv":
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", sys.argv[2]], check=True)
    (place,) = __import__("pathlib").Path(sys.argv[2]).glob("lib/python*/site-packages")
    (place / "here.pth").write_text({sysconfig.get_paths()["purelib"]!r})
else:
    assert sys.argv[-1] == "https://github.com/someone/hf-coop/archive/HEAD.zip"
    python = sys.argv[sys.argv.index("--python") + 1]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, {str(ROOT)!r}], check=True)
"""


def test_the_package_is_an_extension_of_hf(tmp_path):
    """`hf extensions install someone/hf-coop`, then `hf coop …`, by the real client."""
    pytest.importorskip("huggingface_hub.cli.extensions")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(GITHUB)
    (tmp_path / "uv").write_text(UV)
    (tmp_path / "uv").chmod(stat.S_IRWXU)
    client = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "NO_COLOR": "1"}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def hf(*arguments: str) -> str:
        done = subprocess.run([*client, *arguments], capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "hf coop" in hf("extensions", "install", "someone/hf-coop")
    listed = hf("extensions", "list")
    assert "hf coop" in listed
    assert "Few-shot prompt" in listed
    assert "base-to-new" in hf("coop", "--help")
    assert "oxford_flowers" in hf("coop", "data", "list", "--data_dir", str(tmp_path))
    place = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-coop" / "venv"
    (installed,) = place.glob("lib/python*/site-packages/hf_coop_cli/learn.py")
    assert installed.read_bytes() == (ROOT / "src" / "hf_coop_cli" / "learn.py").read_bytes()


def test_the_skill_is_what_hf_skills_add_takes(tmp_path):
    skills: Any = pytest.importorskip("huggingface_hub.cli._skills")
    buckets = pytest.importorskip("huggingface_hub._buckets")

    class Bucket:
        """The marketplace with this repository's skills in it."""

        def list_bucket_tree(self, bucket_id: str, prefix: str, recursive: bool) -> list[Any]:
            found = [path for path in (ROOT / prefix).rglob("*") if path.is_file()]
            made = []
            for path in found:
                file = object.__new__(buckets.BucketFile)
                file.path = str(path.relative_to(ROOT))
                made.append(file)
            return made

        def download_bucket_files(self, bucket_id: str, files: list[Any], **options: Any) -> None:
            for remote, local in files:
                Path(local).write_bytes((ROOT / remote.path).read_bytes())

    entry = skills.MarketplaceSkill(name=SKILL.name, repo_path=f"skills/{SKILL.name}")
    place = skills._install_marketplace_skill(Bucket(), entry, tmp_path)
    assert (place / "SKILL.md").read_bytes() == (SKILL / "SKILL.md").read_bytes()


def test_the_skill_says_what_it_is_for_and_names_what_there_is():
    text = (SKILL / "SKILL.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    header = yaml.safe_load(front)
    assert header.keys() == {"name", "description"}
    assert header["name"] == SKILL.name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", header["name"])
    assert len(header["description"]) <= 1024
    commands: Any = get_command(app)
    named = set(re.findall(r"hf-coop ([a-z-]+)", body))
    assert {"train", "predict", "push", "export"} <= named <= set(commands.commands)
    options = {option for name in named for param in commands.commands[name].params for option in param.opts}
    of_training = [*inspect.signature(CoOpTrainingArguments).parameters, *make_prompt_arguments().__dataclass_fields__]
    script = (ROOT / "examples" / "train.py").read_text(encoding="utf-8")
    of_training += re.findall(r"^    (\w+): .* = field\(", script, re.MULTILINE)
    unknown = set(re.findall(r"--\w+", body)) - options - {f"--{name}" for name in of_training}
    assert not unknown


def test_the_script_says_what_it_needs():
    """Its metadata as the specification of inline scripts reads it (PEP 723)."""
    script = (ROOT / "examples" / "train.py").read_text(encoding="utf-8")
    (block,) = re.findall(r"^# /// script\n((?:^#(?:| .*)\n)+?)^# ///$", script, re.MULTILINE)
    metadata = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata == {"requires-python": project["requires-python"], "dependencies": [project["name"]]}


@pytest.mark.slow
def test_trackio_keeps_what_training_reports(tmp_path):
    pytest.importorskip("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    options = ["--model_name_or_path", "demo", "--dataset_name", "demo", "--num_shots", "1", "--max_text_passes", "5"]
    options += ["--output_dir", str(tmp_path / "run"), "--report_to", "trackio", "--use_cpu", "True"]
    script = str(ROOT / "examples" / "train.py")
    subprocess.run([sys.executable, script, *options], check=True, env=environment, cwd=tmp_path, timeout=200)
    (database,) = (tmp_path / "trackio").glob("hf_coop*.db")
    rows = sqlite3.connect(database).execute("select metrics from metrics order by step").fetchall()
    losses = [json.loads(metrics)["loss"] for (metrics,) in rows]
    assert len(losses) >= 2
    assert losses[-1] < losses[0]
