"""Which files `hf-coop predict` takes, and how it behaves in a pipe."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CLASSNAMES, PARITY
from PIL import Image
from typer.testing import CliRunner

from hf_coop import HFCoOp
from hf_coop.data import image_files
from hf_coop.serving import classify_files, find_images
from hf_coop_cli import app

HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(12)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, of which one is HEIC, and files of other kinds."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 30), "red").save(photos / "a.jpg")
    (photos / "b.HEIC").write_bytes(HEIC)
    for name in ("c.pdf", "d.mpg", "e.mpeg", "f.eps", "g.h5", "h.txt", ".i.jpg"):
        (photos / name).write_bytes(b"x")
    return photos


class TestFindImages:
    def test_still_images_alone(self, folder):
        assert [Path(path).name for path in find_images([folder])] == ["a.jpg", "b.HEIC"]
        assert find_images([folder / "c.pdf"]) == [folder / "c.pdf"]  # named itself, so tried

    def test_home_and_nothing(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder))
        assert find_images(["~/a.jpg", "~/*.jpg"]) == [folder / "a.jpg"]
        for empty in ("", " "):
            with pytest.raises(ValueError, match="is no place of images: give a file, a folder"):
                find_images([folder, empty])


def test_a_heic_file_without_pillow_heif_is_no_silent_loss(adapter, folder, monkeypatch):
    monkeypatch.setattr(image_files, "readable_formats", lambda: ("PNG", "JPEG"))
    results = dict(classify_files(HFCoOp.from_pretrained(adapter), find_images([folder])))
    assert results[folder / "a.jpg"][0]["label"] in CLASSNAMES
    assert "b.HEIC' as an image: pillow-heif reads HEIC images: pip install" in str(results[folder / "b.HEIC"])


def test_a_photo_too_many_sides_too_long_is_reported(adapter, tmp_path):
    Image.new("L", (50_000, 1)).save(tmp_path / "line.png")
    ((path, error),) = classify_files(HFCoOp.from_pretrained(adapter), [tmp_path / "line.png"])
    assert str(error).startswith(f"cannot read '{path}' as an image: its 50000 x 1 pixels are no picture")


@pytest.mark.parametrize("device", ["potato", "cuda:99"])
def test_a_device_that_is_not_there(folder, device):
    done = CliRunner().invoke(app, ["predict", "no/adapter", str(folder), "--device", device])
    assert done.output.startswith(f"error: no device {device!r} here: ")
    assert done.output.endswith("leave it out, or give cpu\n")
    assert done.output.count("\n") == 1
    with pytest.raises(ValueError, match=f"no device {device!r} here"):
        HFCoOp.from_clip("no/model", ["a"], device=device)


def test_a_reader_that_has_enough_ends_it_quietly(adapter, tmp_path):
    """As `hf-coop predict … | head -1`; and without a terminal there are no progress bars."""
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    for number in range(1, 3000):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_coop_cli", "predict", str(adapter), str(tmp_path), "--json", "--batch_size", "200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["predictions"]
    process.stdout.close()
    assert process.wait() == 141
    errors = process.stderr.read()
    assert "Traceback" not in errors
    assert "Broken" not in errors
    assert "image/s" not in errors
    assert "Predicting" not in errors
