"""Strangers' images: read with limits, from their bytes alone."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from hf_coop.data import classnames_of
from hf_coop.serving import uploads
from hf_coop.serving.uploads import read_archive, read_upload


def png(size: tuple[int, int] = (20, 10), color: str = "red", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color if mode == "RGB" else 1).save(file, "PNG")
    return file.getvalue()


def archive(files: Mapping[str, bytes]) -> io.BytesIO:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    made.seek(0)
    return made


def test_an_image_by_path_or_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for file in (tmp_path / "a.png", png()):
        image = read_upload(file)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (20, 10), (255, 0, 0))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG broken", png()[:-30], b"<svg onload='x'/>"])
def test_what_is_no_image(content, tmp_path):
    (tmp_path / "secret-name").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read|this is not an image") as error:
        read_upload(tmp_path / "secret-name")
    assert str(tmp_path) not in str(error.value)


def test_bombs_are_not_decoded(monkeypatch):
    bomb = png((9000, 9000), mode="1")
    assert len(bomb) < 30_000
    monkeypatch.setattr(uploads, "load_image", lambda content: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="the image has 9000 x 9000 pixels; 40 million are allowed"):
        read_upload(bomb)
    with pytest.raises(ValueError, match="this is not an image that can be read"):  # Pillow's own limit
        read_upload(png((20_000, 10_000), mode="1"))
    with pytest.raises(ValueError, match="the image has 2 x 101 pixels, which is no picture"):
        read_upload(png((2, 101)))
    monkeypatch.setattr(uploads, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(ValueError, match="the file has 0 MiB; 0 are allowed"):
        read_upload(png())


def test_an_archive_by_class(tmp_path, monkeypatch):
    """Whatever folders lie above; nothing else in it is read, and nothing is written anywhere."""
    monkeypatch.chdir(tmp_path)
    files = {
        "pets/<b>cat/1.png": png(color="red"),
        "pets/<b>cat/2.png": png(color="green"),
        "../../dog/3.png": png((2000, 1000), "blue"),
        "pets/dog/notes.txt": b"text",
        "pets/dog/drawing.eps": b"no image that is read",
        "pets/dog/.hidden.png": b"",
        "__MACOSX/pets/dog/3.png": b"",
        "loose.png": b"",
    }
    dataset = read_archive(archive(files))
    assert classnames_of(dataset) == ["<b>cat", "dog"]
    assert dataset["label"][:] == [0, 0, 1]
    assert [image.size for image in dataset["image"][:]] == [(20, 10), (20, 10), (512, 256)]
    assert dataset[2]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds images of 0 classes"),
        ({"a/1.png": png()}, "holds images of 1 classes"),
        ({"1.png": png(), "2.png": png()}, "holds images of 0 classes"),
        ({"a/1.png": png(), "b/2.png": b"no image"}, "b/2.png: this is not an image"),
        ({"a/1.png": png(), "b/2.png": bytes(2**26)}, "b/2.png: the file has 16 MiB; 16 are allowed"),  # 64 KiB
        ({"a/1.png": png(), "b/2.png": png((9000, 9000), mode="1")}, "b/2.png: the image has 9000 x 9000 pixels"),
    ],
)
def test_archives_that_cannot_be_learned_from(files, message):
    with pytest.raises(ValueError, match=message):
        read_archive(archive(files))


def test_archives_that_are_too_large(monkeypatch):
    files = {f"{name}/{number}.png": png() for name in "abc" for number in range(3)}
    monkeypatch.setattr(uploads, "MAX_CLASSES", 2)
    with pytest.raises(ValueError, match="holds 3 classes; 2 are allowed"):
        read_archive(archive(files))
    monkeypatch.setattr(uploads, "MAX_ARCHIVE_BYTES", 200)
    with pytest.raises(ValueError, match=r"the images in the .zip have more than 0 MiB"):
        read_archive(archive(files))
    monkeypatch.setattr(uploads, "MAX_ARCHIVE_FILES", 8)
    with pytest.raises(ValueError, match="holds 9 files; 8 are allowed"):
        read_archive(archive(files))


def test_what_is_no_archive(tmp_path):
    broken = archive({"a/1.png": png(), "b/1.png": png()}).getvalue()
    wrong_sum = broken.replace(zlib.crc32(png()).to_bytes(4, "little"), b"\0\0\0\0")
    for content in (b"", b"no archive", broken[:-10], wrong_sum):
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(ValueError, match=r"this is not a .zip file that can be read"):
            read_archive(Path(tmp_path, "a.zip"))
