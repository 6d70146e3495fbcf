"""`hf-coop base-to-new` and the script behind it, on generated images."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PARITY
from PIL import Image
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASSNAMES = ["aeroplane", "bird", "cat", "dog", "pink primrose"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Options that name a training and a test folder: five classes, each of its own colour."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 6)):
        for label, name in enumerate(CLASSNAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(50 * label, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return [f"--train_dir={root / 'train'}", f"--test_dir={root / 'test'}"]


def arguments(*options: str) -> list[str]:
    return [f"--model_name_or_path={PARITY}", "--use_cpu", "--num_shots=2", "--save_strategy=no", *options]


def run_here(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """The script's `main` in this process."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["base_to_new.py", *arguments(*options)])
    importlib.import_module("base_to_new").main()


def test_table_over_seeds(folders, tmp_path, monkeypatch):
    output = tmp_path / "out"
    options = (f"--output_dir={output}", "--seeds", "1", "2", "--num_train_epochs=3")
    command = [sys.executable, "-m", "hf_coop_cli", "base-to-new", *arguments(*folders, *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((output / "base_to_new.json").read_text(encoding="utf-8"))
    assert result["scores"].keys() == {"zero_shot", "coop", "cocoop"}
    for method, rows in result["scores"].items():
        assert len(rows) == 2
        for row in rows:
            # 3 base classes and 2 new ones, 6 test images each
            assert row["base"] * 18 == pytest.approx(round(row["base"] * 18))
            assert row["new"] * 12 == pytest.approx(round(row["new"] * 12))
            base, new = row["base"], row["new"]
            assert row["harmonic_mean"] == pytest.approx(2 / (1 / base + 1 / new) if base and new else 0)
        for score in ("base", "new", "harmonic_mean"):
            values = [row[score] for row in rows]
            assert result["mean"][method][score] == pytest.approx(np.mean(values))
            assert result["std"][method][score] == pytest.approx(np.std(values))
    assert result["std"]["zero_shot"]["base"] == 0
    table = (output / "base_to_new.md").read_text(encoding="utf-8")
    assert table in done.stdout
    assert "| CoCoOp |" in table
    with Image.open(output / "base_to_new.png") as chart:
        assert chart.width > 400
    for method, count in (("coop", 1), ("cocoop", 5)):
        for seed in (1, 2):
            folder = output / f"{method}-seed{seed}"
            assert len(load_file(folder / "adapter_model.safetensors")) == count
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            assert config["classnames"] == CLASSNAMES[:3]
            assert config["ctx_init"] == "a photo of a"

    with pytest.raises(SystemExit, match="overwrite_output_dir"):
        run_here(monkeypatch, *folders, *options)


def test_equal_names_in_either_half(folders, tmp_path, monkeypatch):
    names = ["missile", "cat", "missile", "jet", "Jet"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    options = ("--seeds=1", "--methods", "coop", "--num_train_epochs=1", f"--classnames_file={tmp_path / 'names.txt'}")
    with pytest.warns(UserWarning, match="same prompt") as caught:
        run_here(monkeypatch, *folders, *options, f"--output_dir={tmp_path / 'out'}")
    messages = {str(warning.message) for warning in caught if "same prompt" in str(warning.message)}
    assert len(messages) == 2  # one for each half
    config = json.loads((tmp_path / "out" / "coop-seed1" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["classnames"] == names[:3]


def test_learns_the_base_classes(folders, tmp_path, monkeypatch):
    """With enough steps both methods beat the random model's hand-written prompt on the classes they learn."""
    options = ("--seeds=1", "--num_shots=4", "--num_train_epochs=100", "--learning_rate=0.02")
    run_here(monkeypatch, *folders, *options, f"--output_dir={tmp_path / 'out'}")
    mean = json.loads((tmp_path / "out" / "base_to_new.json").read_text(encoding="utf-8"))["mean"]
    assert mean["coop"]["base"] > mean["zero_shot"]["base"]
    assert mean["cocoop"]["base"] > mean["zero_shot"]["base"]


def test_a_sweep_without_checkpoints_is_resumed_by_doing_it_again(folders, tmp_path, monkeypatch):
    output = tmp_path / "out"
    options = (f"--output_dir={output}", "--seeds", "1", "--num_train_epochs=1")
    run_here(monkeypatch, *folders, *options)
    first = (output / "base_to_new.json").read_bytes()
    for path in output.glob("base_to_new.*"):
        path.unlink()
    run_here(monkeypatch, *folders, *options, "--resume_from_checkpoint=True")
    scores = [json.loads(content)["scores"] for content in (first, (output / "base_to_new.json").read_bytes())]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class_specific_context=True"], "class_specific_context"),
        (["--class_token_position=middle"], "class_token_position"),
        (["--test_dir=nowhere"], "nowhere"),
        (["--per_device_train_batch_size=0"], "per_device_train_batch_size"),
        (["--methods", "coop", "maple"], "method must be one of .*coop.*'maple'"),
        (["--num_shots=-1"], "num_shots"),
    ],
)
def test_bad_options(folders, tmp_path, monkeypatch, options, message):
    """One line, before anything is trained."""
    with pytest.raises((SystemExit, ValueError), match=message):
        run_here(monkeypatch, *folders, *options, f"--output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_no_test_images(folders, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="error: no test images"):
        run_here(monkeypatch, folders[0], f"--output_dir={tmp_path / 'out'}")


def test_a_benchmark_with_equal_names(trees, tmp_path, monkeypatch):
    """ImageNet's: "missile" and "sunglasses" are there twice, all four among the new classes."""
    options = ("--benchmark=imagenet", f"--data_dir={trees}", "--methods", "coop", "--seeds", "1")
    run_here(monkeypatch, *options, "--num_train_epochs=1", "--n_ctx=2", f"--output_dir={tmp_path}")
    result = json.loads((tmp_path / "base_to_new.json").read_text(encoding="utf-8"))
    assert result["settings"]["data"]["benchmark"] == "imagenet"
    for method in ("zero_shot", "coop"):
        for half in ("base", "new"):
            hits = result["scores"][method][0][half] * 18  # six classes, three images each
            assert hits == pytest.approx(round(hits))
