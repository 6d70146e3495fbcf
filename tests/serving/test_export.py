"""Prompts as ONNX models and `torch.export` programs: `hf-coop export`, and `hf-coop predict` without PyTorch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PARITY
from loopback_hub import HubServer
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor
from typer.testing import CliRunner

from hf_coop import HFCoOp
from hf_coop.demo import CLASSNAMES, DEMO_CLIP, load_digits_dataset
from hf_coop.serving import export, export_model
from hf_coop_cli import app

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from hf_coop_onnx import OnnxClassifier  # noqa: E402 - needs what was looked for

NAMES = ["<b>zero</b>", *CLASSNAMES[1:]]


@pytest.fixture(scope="module")
def model() -> HFCoOp:
    return HFCoOp.from_clip(DEMO_CLIP, NAMES, ctx_init="a photo of a", learn_temperature=True).eval()


@pytest.fixture(scope="module")
def adapter(model: HFCoOp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "digits"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "new" / "model.onnx"
    done = CliRunner().invoke(app, ["export", str(adapter), str(path)])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(path)]
    return path


@pytest.fixture(scope="module")
def digits() -> list[Image.Image]:
    return load_digits_dataset()["test"]["image"][:200]


def pictures(folder: Path, images: list[Image.Image]) -> Path:
    """The images of a folder, one of them broken."""
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    return folder


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_logits_are_the_models(model, exported, digits, batch):
    loaded = OnnxClassifier(exported)
    pixels = loaded.image_processor(digits[:batch]).pixel_values
    with torch.no_grad():
        expected = model(pixel_values=model.image_processor(digits[:batch], return_tensors="pt").pixel_values).logits
    found = torch.from_numpy(loaded.logits(pixels))
    assert found.shape == (batch, 10)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_predict_is_the_models(model, exported, digits):
    loaded = OnnxClassifier(exported)
    images = [digits[0], np.asarray(digits[1]), digits[2].resize((40, 31))]
    found, expected = loaded.predict(images, top_k=3, batch_size=2), model.predict(images, top_k=3)
    assert [[row["label"] for row in rows] for rows in found] == [[row["label"] for row in rows] for rows in expected]
    scores = [[row["score"] for row in rows] for rows in found]
    np.testing.assert_allclose(scores, [[row["score"] for row in rows] for rows in expected], atol=1e-5)
    assert [row["label"] for row in loaded.predict(digits[0], top_k=99)] == [
        row["label"] for row in model.predict(digits[0], top_k=99)
    ]


def test_options_are_checked_as_the_models(exported, digits):
    loaded = OnnxClassifier(exported)
    for option in ("top_k", "batch_size"):
        for value, error, message in (
            (0, ValueError, "at least 1, got 0"),
            (2.0, TypeError, "a whole number, got 2.0"),
        ):
            with pytest.raises(error, match=f"{option} must be {message}"):
                loaded.predict([], **{option: value})
    numbers = {"top_k": np.int64(2), "batch_size": np.int32(1), "min_score": np.float32(0)}
    expected = loaded.predict(digits[:3], top_k=2, batch_size=1)
    assert loaded.predict(digits[:3], **numbers) == expected
    assert [len(row) for row in expected] == [2] * 3


def test_the_file_says_what_it_is(model, exported):
    metadata = {prop.key: prop.value for prop in onnx.load(exported).metadata_props}
    assert json.loads(metadata["classnames"]) == NAMES
    assert json.loads(metadata["preprocessing"]) == json.loads(model.image_processor.to_json_string())
    assert metadata["base_model"] == str(DEMO_CLIP)
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]


PROCESSORS = {
    "demo": AutoImageProcessor.from_pretrained(DEMO_CLIP),
    "parity": AutoImageProcessor.from_pretrained(PARITY),
    "crops more than it resizes": CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 33, "width": 48}
    ),
    "squeezes": CLIPImageProcessor(size={"height": 30, "width": 20}, resample=2, do_center_crop=False),
    "does not resize": CLIPImageProcessor(do_resize=False, do_normalize=False, crop_size={"height": 31, "width": 32}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_is_the_processors(name):
    processor, random = PROCESSORS[name], np.random.default_rng(0)
    preprocessing = export.Preprocessing(json.loads(processor.to_json_string()))
    for width, height in ((1, 1), (16, 16), (33, 20), (57, 301), (640, 480), (31, 500), (500, 7)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        expected = processor(images=image, return_tensors="np").pixel_values
        found = preprocessing([image]).pixel_values
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_an_image_that_is_no_picture_is_refused(exported):
    loaded = OnnxClassifier(exported)
    with pytest.raises(ValueError, match="its 1 x 4000000 pixels are no picture"):
        loaded.predict(Image.new("RGB", (1, 4_000_000)))


def test_predict_needs_no_torch(exported, digits, tmp_path):
    """The command in a process of its own: the same scores, a broken image told, and neither PyTorch nor PEFT."""
    folder = pictures(tmp_path / "photos", digits[:3])
    code = f"""
import sys
from hf_coop_cli import app
sys.argv = ["hf-coop", "predict", {str(exported)!r}, {str(folder)!r}, "--json", "--top_k", "2"]
try:
    app()
finally:
    print([name for name in ("torch", "transformers", "peft", "datasets", "hf_coop") if name in sys.modules])
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "1 of 4 images could not be read" in done.stderr
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    rows = {Path(row["image"]).name: row for row in map(json.loads, lines)}
    assert "cannot read" in rows["broken.png"]["error"]
    expected = OnnxClassifier(exported).predict(digits[:3], top_k=2)
    assert [rows[f"{number}.png"]["predictions"] for number in range(3)] == expected


def run_guide(block: int, folder: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables of a code block of docs/serving.md, run in `folder` with these files in it."""
    for name, file in files.items():
        shutil.copy(file, folder / name)
    monkeypatch.chdir(folder)
    guide = Path(__file__).parents[2] / "docs" / "serving.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    variables: dict[str, Any] = {}
    exec(blocks[block - 1], variables)
    return variables


def test_the_guides_code(exported, digits, tmp_path, monkeypatch, capsys):
    digits[0].save(tmp_path / "digit.jpg")
    run_guide(1, tmp_path, {"flowers.onnx": exported, "photo.jpg": tmp_path / "digit.jpg"}, monkeypatch)
    assert capsys.readouterr().out.startswith("[[{'label': ")


def test_int8_is_small_and_names_the_same_classes(model, exported, digits, tmp_path):
    path = export_model(model, tmp_path / "model.onnx", int8=True)
    assert path.stat().st_size < exported.stat().st_size / 2
    found, expected = OnnxClassifier(path), OnnxClassifier(exported)
    pixels = expected.image_processor(digits).pixel_values
    same = found.logits(pixels).argmax(-1) == expected.logits(pixels).argmax(-1)
    assert same.mean() > 0.95
    assert found.classnames == NAMES
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_program(model, adapter, digits, tmp_path, monkeypatch):
    done = CliRunner().invoke(app, ["export", str(adapter), str(tmp_path / "model.pt2")])
    assert done.exit_code == 0, done.output
    extra_files = {"classnames": "", "preprocessing": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra_files).module()
    assert json.loads(extra_files["classnames"]) == NAMES
    program = run_guide(2, tmp_path, {"flowers.pt2": tmp_path / "model.pt2"}, monkeypatch)["program"]
    pixels = model.image_processor(digits[:5], return_tensors="pt").pixel_values
    with torch.no_grad():
        torch.testing.assert_close(program(pixels), model(pixel_values=pixels).logits, atol=1e-4, rtol=0)


def test_a_model_that_computes_something_else_is_not_kept(model, tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_bytes(b"the one before")
    monkeypatch.setattr(export, "LOGITS_TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="logits differ from PyTorch's by up to"):
        export_model(model, tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"the one before"


def test_other_preprocessing_is_refused(tmp_path):
    other = HFCoOp.from_clip(PARITY, CLASSNAMES)
    other.image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    other.image_processor.crop_size = None
    other.image_processor.size = {"longest_edge": 32}
    with pytest.raises(ValueError, match="is not of CLIP's kind"):
        export_model(other, tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", [], "must end in .onnx or .pt2 (a torch.export program), got"),
        ("model.pt2", ["--int8"], "int8 weights are for ONNX models"),
        ("model.onnx", ["--push"], "is a folder: push it (hf-coop push), then export its repository"),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_loaded(name, options, message, adapter, tmp_path):
    done = CliRunner().invoke(app, ["export", str(adapter), str(tmp_path / name), *options])
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert message in done.output
    assert not list(tmp_path.iterdir())


def test_cocoop_is_refused(tmp_path):
    model = HFCoOp.from_clip(PARITY, CLASSNAMES, method="cocoop")
    with pytest.raises(ValueError, match="CoCoOp makes class prompts for each image: the file would have to hold the"):
        export_model(model, tmp_path / "model.onnx")


def test_files_that_are_no_exported_prompts(tmp_path, exported):
    with pytest.raises(FileNotFoundError, match="no such file"):
        OnnxClassifier(tmp_path / "nothing.onnx")
    (tmp_path / "broken.onnx").write_bytes(exported.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot read .*broken.onnx' as an ONNX model"):
        OnnxClassifier(tmp_path / "broken.onnx")
    stranger = onnx.load(exported)
    kept = [(prop.key, prop.value) for prop in stranger.metadata_props]
    for changes, message in (
        ({"classnames": None}, "was not written by `hf-coop export`: KeyError"),
        ({"classnames": '["cat"]'}, "has logits of shape .* for 1 class names"),
        ({"classnames": "[1, 2"}, "was not written by"),
        ({"preprocessing": '{"do_resize": true}'}, "is not of CLIP's kind"),
    ):
        del stranger.metadata_props[:]
        onnx.helper.set_model_props(stranger, {k: v for k, v in {**dict(kept), **changes}.items() if v is not None})
        onnx.save(stranger, tmp_path / "stranger.onnx")
        with pytest.raises(ValueError, match=message):
            OnnxClassifier(tmp_path / "stranger.onnx")
    done = CliRunner().invoke(app, ["predict", str(exported), str(exported), "--revision", "main"])
    assert done.exit_code == 2
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        OnnxClassifier(exported).predict([], top_k=0)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


def test_push_puts_it_beside_the_adapter(hub, adapter, tmp_path):
    hub.add("tester/digits", adapter)
    out = tmp_path / "model.pt2"
    done = hub.run(tmp_path / "home", "-m", "hf_coop_cli", "export", "tester/digits", str(out), "--push")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["tester/digits"]
    assert repo.files()["model.pt2"].read_bytes() == out.read_bytes()
    assert "adapter_config.json" in repo.files()
    assert [row["summary"] for row in repo.log][-1] == "Upload model.pt2 with hf-coop"
    assert done.stdout.split() == [str(out), f"{hub.endpoint}/tester/digits/commit/{repo.branches['main']}"]
