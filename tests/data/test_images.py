"""`load_image`: every kind of thing that stands for an image, and what is none."""

from __future__ import annotations

import base64
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_coop.data import image_files
from hf_coop.data import images as module
from hf_coop.data.images import load_image, load_images, read_image


class TestImages:
    """Every mode a file may have comes out as the RGB image that a viewer shows."""

    gray = np.add.outer(np.arange(0, 64, 4), np.arange(0, 128, 8)).astype(np.uint8)

    def expected(self) -> np.ndarray:
        return np.repeat(self.gray[:, :, None], 3, axis=2)

    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "YCbCr"])
    def test_modes(self, mode):
        image = Image.fromarray(self.gray).convert("RGB").convert(mode)
        loaded = load_image(image)
        assert loaded.mode == "RGB"
        difference = np.abs(np.asarray(loaded).astype(int) - self.expected())
        assert difference.max() <= (255 if mode == "P" else 2)
        assert difference.mean() < 30

    def test_a_gray_palette_image(self):
        image = Image.fromarray(self.gray).convert("P")
        assert np.array_equal(np.asarray(load_image(image)), self.expected())

    def test_one_bit(self):
        image = Image.fromarray(self.gray > 100)
        assert image.mode == "1"
        assert np.array_equal(np.asarray(load_image(image))[:, :, 0] > 0, self.gray > 100)

    @pytest.mark.parametrize("suffix", ["png", "tiff"])
    def test_16_bit_files_keep_their_tones(self, suffix, tmp_path):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(self.gray.astype(np.uint16) * 257).save(path)
        with Image.open(path) as opened:
            assert opened.mode == "I;16"
        assert np.array_equal(np.asarray(load_image(path)), self.expected())

    def test_arrays(self):
        for array in (self.gray, self.gray[:, :, None], self.expected(), self.gray / 255, self.gray.astype(int)):
            assert np.array_equal(np.asarray(load_image(array)), self.expected())
        opaque = np.dstack([self.expected(), np.full_like(self.gray, 255)])
        assert np.array_equal(np.asarray(load_image(opaque)), self.expected())
        assert np.array_equal(np.asarray(load_image(self.gray > 100)), 255 * (self.expected() > 100))

    def test_is_turned_upright(self, tmp_path):
        image = Image.fromarray(self.expected()[:8])
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.png", exif=exif)
        assert load_image(tmp_path / "turned.png").size == (8, 16)

    def test_transparent_ground_is_white(self):
        shape = np.zeros((9, 9, 4), np.uint8)  # a black square on nothing, which is black too
        shape[3:6, 3:6, 3] = 255
        expected = np.full((9, 9, 3), 255)
        expected[3:6, 3:6] = 0
        image, file = Image.fromarray(shape), io.BytesIO()
        image.convert("LA").save(file, "png")
        tensor, palette = torch.from_numpy(shape).permute(2, 0, 1), image.convert("PA")
        palette.putalpha(image.getchannel("A"))  # which Pillow 10's conversion leaves out
        for given in (image, image.convert("LA"), palette, shape, tensor, file):
            assert np.array_equal(np.asarray(load_image(given)), expected)
        gray = Image.fromarray(255 - shape[:, :, 3])
        gray.info["transparency"] = 255  # as PNG says which tone is transparent
        assert np.array_equal(np.asarray(load_image(gray)), expected)
        half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
        assert load_image(half).getpixel((0, 0)) == (255, 127, 127)

    @pytest.mark.parametrize("kind", ["png", "gif", "webp"])
    def test_transparent_palettes_in_files(self, kind):
        image, file = Image.new("P", (8, 8), 1), io.BytesIO()
        image.putpalette([0, 0, 0, 0, 0, 0, 200, 0, 0])
        image.paste(2, (2, 2, 6, 6))
        if kind == "webp":
            image.info["transparency"] = 1
            image.convert("RGBA").save(file, kind, lossless=True)
        else:
            image.save(file, kind, transparency=1)
        loaded = load_image(file)
        assert loaded.getpixel((0, 0)) == (255, 255, 255)
        assert loaded.getpixel((4, 4)) == (200, 0, 0)

    def test_the_first_image_of_an_animation(self, tmp_path):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        for kind in ("gif", "png", "webp", "tiff"):
            path = tmp_path / f"film.{kind}"
            frames[0].save(path, save_all=True, append_images=frames[1:])
            red, _, blue = load_image(path).getpixel((4, 4))
            assert red > 200
            assert blue < 50
            with Image.open(path) as film:
                film.seek(1)
                assert load_image(film).getpixel((4, 4))[2] > 200  # the frame that was chosen

    @pytest.mark.parametrize(("mode", "kind"), [("I", "32-bit whole numbers"), ("F", "floating-point numbers")])
    def test_numbers_without_a_scale(self, mode, kind, tmp_path):
        dtype, white = (np.int32, 255) if mode == "I" else (np.float32, 1)
        values, path = self.gray.astype(float) / 255 * white, tmp_path / "image.tiff"
        for wrong in (values * 1000, values - white):
            Image.fromarray(wrong.astype(dtype)).save(path)
            with pytest.raises(
                ValueError, match=rf"image\.tiff' as an image: its pixels are {kind} from .* to .*white"
            ):
                load_image(path)
        Image.fromarray(values.astype(dtype)).save(path)
        with Image.open(path) as opened:
            assert opened.mode == mode
        assert np.abs(np.asarray(load_image(path)).astype(int) - self.expected()).max() <= 1

    def test_gray_of_16_bits_in_a_pgm_file(self, tmp_path):
        path = tmp_path / "image.pgm"
        path.write_bytes(b"P5 16 16 65535\n" + (self.gray.astype(">u2") * 257).tobytes())
        with Image.open(path) as opened:
            assert opened.mode in ("I", "I;16")
        assert np.array_equal(np.asarray(load_image(path)), self.expected())

    def test_opened_images_stay_unread(self, tmp_path):
        Image.fromarray(self.expected().astype(np.uint8)).save(tmp_path / "image.png")
        opened = Image.open(tmp_path / "image.png")
        for _ in range(2):
            assert np.array_equal(np.asarray(load_image(opened)), self.expected())
            assert opened.tile  # so that a list of many does not come to hold all of their pixels
        assert np.array_equal(np.asarray(opened), self.expected())

    def test_home_and_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        Image.fromarray(self.gray).save(tmp_path / "image.png")
        assert load_image("~/image.png").size == (16, 16)
        with pytest.raises(ValueError, match="cannot read '' as an image"):
            load_image("")

    def test_a_truncated_file(self, tmp_path):
        path = tmp_path / "image.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match=r"cannot read .*image\.png"):
            load_image(path)


class TestSizes:
    """Limits are told before memory is taken."""

    @staticmethod
    def header(width: int, height: int, colour_type: int) -> bytes:
        """A PNG file that says how large it is, and ends there."""
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
        start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return start + struct.pack(">I", 4) + b"IDAT" + bytes(8)

    def test_too_large_in_memory(self):
        with (
            pytest.warns(Image.DecompressionBombWarning),
            pytest.raises(ValueError, match=r"13000 x 13000 pixels are too many: 100 megapixels are read .* 384 MiB"),
        ):
            load_image(self.header(13_000, 13_000, 2))
        with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match=r"truncated|broken"):
            load_image(self.header(13_000, 13_000, 0))  # gray: a byte a pixel

    def test_what_pillow_takes_for_a_bomb(self, monkeypatch):
        with pytest.raises(ValueError, match=r"400000000 pixels.* exceeds limit of 178956970 pixels"):
            load_image(self.header(20_000, 20_000, 0))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match="exceeds limit of 200 pixels"):
            load_image(png(Image.new("L", (15, 15))))

    def test_a_jpeg_is_read_smaller(self, monkeypatch):
        whole, file = Image.fromarray(TestImages.gray).convert("RGB").resize((160, 120)), io.BytesIO()
        whole.save(file, "jpeg", quality=95)
        for limit, size in ((160 * 120 * 4, (160, 120)), (160 * 120, (80, 60)), (30 * 40, (20, 15))):
            monkeypatch.setattr(image_files, "MAX_DECODED_BYTES", limit)
            found = load_image(file)
            assert found.size == size
            assert np.abs(np.asarray(found).astype(int) - np.asarray(whole.resize(size))).mean() < 3
        monkeypatch.setattr(image_files, "MAX_DECODED_BYTES", 999)
        with pytest.raises(ValueError, match="160 x 120 pixels are too many"):
            load_image(file)


class TestFormats:
    @pytest.mark.parametrize("name", ["a.JPG", "a.png", "a.jfif", "a.mpo", "a.heic", "a.HEIF", "a.tif", "a.webp"])
    def test_still_images(self, name):
        assert image_files.is_image_name(Path("folder", name))

    @pytest.mark.parametrize("name", ["a.pdf", "a.mpg", "a.mpeg", "a.eps", "a.h5", "a.wmf", "a.txt", "jpg", ".a.jpg"])
    def test_other_files(self, name):
        assert not image_files.is_image_name(Path("folder", name))

    def test_a_program_is_not_run(self, tmp_path):
        """Pillow hands EPS files to Ghostscript."""
        Image.new("RGB", (8, 8)).save(tmp_path / "image.eps")
        with pytest.raises(ValueError, match="cannot identify image file"):
            load_image(tmp_path / "image.eps")


class TestHEIC:
    def test_without_pillow_heif_it_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(image_files, "readable_formats", lambda: ("PNG", "JPEG"))
        head = struct.pack(">I", 24) + b"ftypheic" + bytes(12)
        (tmp_path / "photo.heic").write_bytes(head)
        for given in (tmp_path / "photo.heic", head):
            with pytest.raises(ValueError, match=r"cannot read .* as an image: pillow-heif reads HEIC.*pip install"):
                load_image(given)

    def test_with_it(self, tmp_path):
        pillow_heif = pytest.importorskip("pillow_heif")
        pixels = np.full((32, 64, 3), (200, 40, 90), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "photo.heic", exif=exif.tobytes())
        loaded = load_image(tmp_path / "photo.heic")
        assert loaded.size == (32, 64)
        assert np.abs(np.asarray(loaded).astype(int) - pixels[0, 0]).max() < 12


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


class TestTensors:
    """Channels come first in tensors and last in arrays, whatever the sizes."""

    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
    def test_are_what_arrays_are_with_channels_first(self, dtype):
        tensor = torch.from_numpy(self.pixels).permute(2, 0, 1)
        tensor = tensor.to(dtype) / 255 if dtype.is_floating_point else tensor.to(dtype)
        assert np.array_equal(np.asarray(load_image(tensor)), self.pixels)
        assert np.array_equal(np.asarray(load_image(self.pixels)), self.pixels)

    def test_half_precision_gradients_and_gray(self):
        gray = torch.rand(5, 6, requires_grad=True)
        expected = np.asarray(load_image(gray.detach().numpy())).astype(int)
        for tensor, tolerance in ((gray, 0), (gray[None], 0), (gray.bfloat16(), 1), (gray.half(), 1)):
            assert np.abs(np.asarray(load_image(tensor)).astype(int) - expected).max() <= tolerance

    @pytest.mark.parametrize("shape", [(8, 9, 3), (2, 8, 9), (3,), (1, 3, 8, 9)])
    def test_other_shapes_are_told_what_to_do(self, shape):
        with pytest.raises(ValueError, match=r"channels first, got .*permute") as error:
            load_image(torch.zeros(shape, dtype=torch.uint8))
        assert str(shape) in str(error.value)

    def test_what_an_image_processor_gives_is_not_an_image(self):
        with pytest.raises(ValueError, match=r"from 0 to 1; .*model\(pixel_values=…\)"):
            load_image(torch.randn(3, 8, 8))


class TestEncoded:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8))

    def test_bytes_files_paths_and_cells(self, tmp_path):
        path = tmp_path / "image.png"
        path.write_bytes(content := png(self.image))
        with path.open("rb") as file:
            for given in (
                *(content, bytearray(content), memoryview(content), io.BytesIO(content), file, path, str(path)),
                *({"bytes": content, "path": None}, {"bytes": None, "path": str(path)}),
            ):
                assert np.array_equal(np.asarray(load_image(given)), np.asarray(self.image))

    @pytest.mark.parametrize("given", [b"no image", {"bytes": b"no image", "path": "a.png"}, io.BytesIO(b"no image")])
    def test_what_is_no_image(self, given):
        with pytest.raises(ValueError, match=r"cannot read .* as an image"):
            load_image(given)

    def test_a_cell_of_nothing(self):
        with pytest.raises(ValueError, match="cannot read '' as an image"):
            load_image({"bytes": None, "path": None})

    def test_an_open_image_whose_file_is_cut(self):
        opened = Image.open(io.BytesIO(png(self.image.resize((99, 99)))[:2000]))
        with pytest.raises(ValueError, match=r"image 3: cannot read .*truncated"):
            load_images([opened], first=3)

    def test_data_urls(self):
        content = png(self.image)
        for url in (
            "data:image/png;base64," + base64.b64encode(content).decode(),
            "data:image/png," + "".join(f"%{byte:02x}" for byte in content),
        ):
            assert np.array_equal(np.asarray(load_image(url)), np.asarray(self.image))
        for bad, why in (
            ("data:image/png;base64,a", "ase64"),
            ("data:image/png", "a data URL is"),
            ("data:,", "cann"),
        ):
            with pytest.raises(ValueError, match=f"cannot read .*{why}"):
                load_image(bad)


class Images(BaseHTTPRequestHandler):
    """`/image.png`, `/moved/…` (to what follows), `/big` without end, `/slow` without content."""

    content = png(TestEncoded.image)

    def do_GET(self) -> None:
        name = self.path.split("?")[0]
        if name.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", name.removeprefix("/moved/"))
            self.end_headers()
        elif name == "/a%20b/image.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.content)
        elif name in ("/big", "/slow"):
            self.send_response(200)
            self.end_headers()
            while name == "/big":
                self.wfile.write(bytes(2**16))
            while name == "/slow":
                self.wfile.write(b".")
                time.sleep(0.05)
        else:
            self.send_error(404)

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has enough
            super().handle()

    def log_message(self, *args: object) -> None:
        pass


class TestURLs:
    @pytest.fixture(scope="class")
    @staticmethod
    def server() -> Iterator[str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    @pytest.mark.parametrize("path", ["/a b/image.png?size=full", "/a%20b/image.png", "/moved//a%20b/image.png"])
    def test_are_fetched(self, server, path):
        assert np.array_equal(np.asarray(load_image(server + path)), np.asarray(TestEncoded.image))

    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("/gone.png", "404"),
            ("/moved/file:///etc/hostname", "not allowed"),
            ("/moved/ftp://127.0.0.1/a", "unknown url"),
        ],
    )
    def test_what_is_not_there(self, server, path, why):
        with pytest.raises(ValueError, match=f"cannot read '{server}{path}' as an image: .*{why}"):
            load_image(server + path)

    def test_nobody_answers(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/image.png"
        with pytest.raises(ValueError, match=f"cannot read '{url}' as an image"):
            load_image(url)
        for bad in ("http://", "http://[::1/image.png", "https://?"):
            with pytest.raises(ValueError, match="cannot read"):
                load_image(bad)

    def test_too_large(self, server, monkeypatch):
        monkeypatch.setattr(module, "MAX_DOWNLOAD_BYTES", 2**20)
        with pytest.raises(ValueError, match="more than 1048576 bytes"):
            load_image(server + "/big")

    def test_too_slow(self, server, monkeypatch):
        monkeypatch.setattr(module, "MAX_DOWNLOAD_SECONDS", 0.2)
        with pytest.raises(ValueError, match=r"did not come within 0.2 seconds"):
            load_image(server + "/slow")

    def test_a_file_of_a_data_set_is_never_fetched(self, server):
        """Its paths are the author's: only what the user passes as an image is asked for."""
        url = server + "/a%20b/image.png"
        with pytest.raises(ValueError, match="No such file"):
            read_image(url, repr(url))
        with pytest.raises(ValueError, match="No such file"):
            load_image({"bytes": None, "path": url})
