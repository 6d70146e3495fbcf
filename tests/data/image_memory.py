"""Prints how much memory, in MiB, a process takes for each thing that is done with images, as JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPConfig, CLIPModel

from hf_coop import HFCoOp
from hf_coop.data import load_image_folder
from hf_coop.data.features import FreshCrops, encode_images
from hf_coop.demo import DEMO_CLIP
from hf_coop.serving import classify_files

PHOTOS, SIZE = 5, 224


def peak(what: Callable[[], Any]) -> int:
    """MiB by which the process grows at most while `what` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = resident("VmRSS")
    what()
    return (resident("VmHWM") - start) // 1024


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def make_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """One photo of 12 megapixels several times, and shapes and sizes that nobody photographs."""
    small = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (folder / "photos" / "a").mkdir(parents=True)
    first = folder / "photos" / "a" / "0.jpg"
    Image.fromarray(small).resize((4000, 3000)).save(first)
    for number in range(1, PHOTOS):
        shutil.copy(first, folder / "photos" / "a" / f"{number}.jpg")
    shapes = {"wide": (30_000, 1), "tall": (1, 30_000), "transparent": (5_000, 4_000)}
    for name, size in shapes.items():
        Image.new("RGBA", size).save(folder / f"{name}.png", compress_level=1)
        yield name, folder / f"{name}.png"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = CLIPConfig.from_pretrained(DEMO_CLIP)
    config.vision_config.image_size, config.vision_config.patch_size = SIZE, SIZE // 4
    clip = CLIPModel(config)
    clip.name_or_path = str(DEMO_CLIP)
    model = HFCoOp.from_clip(clip, ["a", "b"])
    model.image_processor = AutoImageProcessor.from_pretrained(
        DEMO_CLIP, size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    odd = dict(make_files(folder))
    photos = sorted((folder / "photos" / "a").iterdir())
    model.predict(Image.new("RGB", (SIZE, SIZE)))  # what the first one loads is not counted
    found = {name: peak(lambda path=path: model.predict(path)) for name, path in odd.items()}
    found["paths"] = peak(lambda: model.predict(photos))
    found["opened"] = peak(lambda: model.predict([Image.open(path) for path in photos]))
    found["files"] = peak(lambda: list(classify_files(model, photos)))
    dataset = load_image_folder(folder / "photos")
    found["column"] = peak(lambda: model.predict(dataset["image"]))
    found["features"] = peak(lambda: encode_images(model, dataset))
    found["crops"] = peak(lambda: encode_images(model, dataset, views=2, random=True))
    found["fresh crops"] = peak(lambda: next(FreshCrops(model, dataset, 0).batches(0, [range(PHOTOS)])))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
