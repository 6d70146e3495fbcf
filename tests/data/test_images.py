"""`load_image`: every kind of thing that stands for an image, and what is none."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

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

    def test_a_truncated_file(self, tmp_path):
        path = tmp_path / "image.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match=r"cannot read .*image\.png"):
            load_image(path)


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
