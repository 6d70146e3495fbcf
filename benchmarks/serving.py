"""Predictions, as people make them, beside the bare image tower of ViT-B/16's size.

    python benchmarks/serving.py
    python benchmarks/serving.py --n_images 32 --batch_size 8 --threads 1

- "tower": `CLIPModel.get_image_features` of transformers on pixels that are ready, without gradients: the measure;
- "predict": `HFCoOp.predict` on images in memory, with resizing, softmax and names;
- "eager": `HFCoOp.forward` on pixels, as the ONNX model gets them;
- "onnx", "int8": models that `hf-coop export` wrote, on the same pixels, by onnxruntime on as many threads (left out
  where onnx is not installed);
- "service": the FastAPI service of docs/serving.md, asked by 32 clients for one JPEG file each time (left out where
  fastapi is not installed).

Weights are random, images are noise of 500 x 375 pixels. All run in one process and take turns, so that noise on the
machine hits all alike; best of the repeats.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from hf_coop import HFCoOp
from hf_coop.demo import DEMO_CLIP

GUIDE = Path(__file__).parents[1] / "docs" / "serving.md"
CLIENTS = 32


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


def make_adapter(folder: Path, n_classes: int) -> Path:
    """An adapter and its base model: ViT-B/16's image tower beside the embedded CLIP's small text tower."""
    text = CLIPConfig.from_pretrained(DEMO_CLIP).text_config.to_dict()
    config = CLIPConfig(text_config=text, vision_config={"patch_size": 16}, projection_dim=512)
    CLIPModel(config).save_pretrained(folder / "clip")
    CLIPImageProcessor().save_pretrained(folder / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_CLIP / name, folder / "clip")
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    names = [f"{words[k // 10 % 10]} {words[k % 10]} {words[k // 100]}" for k in range(n_classes)]
    HFCoOp.from_clip(folder / "clip", names, n_ctx=4).save_pretrained(folder / "adapter")
    return folder / "adapter"


def onnx_ways(model: HFCoOp, pixels: torch.Tensor, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import onnxruntime

    from hf_coop.serving import export_model
    from hf_coop_onnx import OnnxClassifier

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    ways: dict[str, Any] = {}
    for name in ("onnx", "int8"):
        loaded = OnnxClassifier(export_model(model, folder / f"{name}.onnx", int8=name == "int8"), options)
        batches = [part.numpy() for part in pixels.split(args.batch_size)]
        ways[name] = lambda loaded=loaded, batches=batches: [loaded.logits(batch) for batch in batches]
    return ways


def start_service(folder: Path, adapter: Path, max_batch: int) -> tuple[Any, int]:
    """The guide's service in a thread of this process."""
    import uvicorn

    code = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[-1]
    (folder / "service.py").write_text(code, encoding="utf-8")
    os.environ["ADAPTER"] = str(adapter)
    sys.path.insert(0, str(folder))
    service = importlib.import_module("service")
    service.MAX_BATCH = max_batch  # type: ignore[attr-defined]
    server = uvicorn.Server(uvicorn.Config(service.app, port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return server, server.servers[0].sockets[0].getsockname()[1]


def ask_service(port: int, files: list[bytes]) -> None:
    def ask(body: bytes) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/predict", body)
        assert connection.getresponse().status == 200
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(ask, files))


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    adapter = make_adapter(folder, args.n_classes)
    model = HFCoOp.from_pretrained(adapter).eval()
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (375, 500, 3), np.uint8)) for _ in range(args.n_images)]
    pixels = model.image_processor(images, return_tensors="pt").pixel_values
    batches = pixels.split(args.batch_size)

    @torch.no_grad()
    def tower() -> None:
        for batch in batches:
            model.clip.get_image_features(pixel_values=batch)

    @torch.no_grad()
    def eager() -> None:
        for batch in batches:
            model(pixel_values=batch)

    ways: dict[str, Callable[[], Any]] = {
        "tower": tower,
        "predict": lambda: model.predict(images, batch_size=args.batch_size),
        "eager": eager,
    }
    if installed("onnx", "onnxscript", "onnxruntime"):
        ways |= onnx_ways(model, pixels, folder, args)
    if installed("fastapi", "uvicorn"):
        server, port = start_service(folder, adapter, args.batch_size)
        files = [jpeg(image) for image in images]
        ways["service"] = lambda: ask_service(port, files)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    if "service" in ways:
        server.should_exit = True
    return {name: min(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_images", type=int, default=256)
    parser.add_argument("--n_classes", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch and of onnxruntime")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(args, Path(folder))
    for name, each in seconds.items():
        ratio = each / seconds["tower"]
        print(f"{name:>8}: {each:7.2f} s, {args.n_images / each:6.1f} images/s, {ratio:.2f} of the tower's time")


if __name__ == "__main__":
    main()
