"""What importing, installing and asking for help costs and brings."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, timeout=120).stdout


def test_importing_the_package_imports_little():
    heavy = ["datasets", "sklearn", "matplotlib", "pandas", "typer", "tensorboard"]
    code = f"""
import sys, peft
from transformers import CLIPModel
theirs = set(sys.modules)  # transformers before 5.22 imports scikit-learn itself
import hf_coop
print([name for name in {heavy} if name in set(sys.modules) - theirs])
"""
    assert run_python("-c", code).strip() == "[]"


def test_importing_the_package_registers_the_methods():
    code = """
import hf_coop
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs, PEFT_TYPE_TO_TUNER_MAPPING as tuners
for name in ("COOP", "COCOOP", "KGCOOP", "PROGRAD"):
    print(configs[name].__name__, tuners[name].__name__)
"""
    methods = ("CoOp", "CoCoOp", "KgCoOp", "ProGrad")
    assert run_python("-c", code).split() == [f"{name}{kind}" for name in methods for kind in ("Config", "Model")]


@pytest.mark.parametrize(("command", "shown"), [("", "demo"), ("experiment", "retry_failed"), ("results", "FOLDERS")])
def test_help_needs_no_torch(command, shown):
    code = f"""
import sys
from hf_coop_cli import app
sys.argv = ["hf-coop", *{command.split()}, "--help"]
try:
    app()
finally:
    print([name for name in ("torch", "transformers", "peft", "numpy", "datasets") if name in sys.modules])
"""
    output = run_python("-c", code)
    assert shown.lower() in output.lower()
    assert output.splitlines()[-1] == "[]"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> list[str]:
    """Names of the files in a wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, cwd=ROOT, timeout=120)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_holds_all_that_is_needed(wheel):
    needed = [
        "hf_coop_cli/__main__.py",
        "hf_coop_onnx.py",
        "hf_coop/__init__.py",
        "hf_coop/py.typed",
        "hf_coop/model_card_template.md",
    ]
    needed += ["hf_coop/data/benchmarks.json"]
    demo = ROOT / "src" / "hf_coop" / "demo" / "clip"
    needed += [f"hf_coop/demo/clip/{path.name}" for path in demo.iterdir()]
    assert "hf_coop/demo/clip/model.safetensors" in needed
    assert set(needed) <= set(wheel)
    assert len(wheel) == len(set(wheel))


def test_the_wheel_holds_nothing_else(wheel):
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "hf_coop",
        "hf_coop_cli",
        "hf_coop_onnx.py",
    }
    assert not any(name.endswith(".pyc") for name in wheel)
