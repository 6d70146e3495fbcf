"""Peak memory of `predict` and of training on many photos of 12 megapixels, with a CLIP of ViT-B/16's sizes.

    python benchmarks/image_memory.py              # 128 photos; 224 pixels; random weights

Each is measured in a process of its own, as its peak resident memory from start to end, CLIP (600 MB) included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TASKS = ("load", "predict", "train")


def make_photos(folder: Path, count: int) -> None:
    """One photo, `count` times, in two classes."""
    import numpy as np
    from PIL import Image

    small = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for name in "ab":
        (folder / name).mkdir()
    first = folder / "a" / "0.jpg"
    Image.fromarray(small).resize((4000, 3000)).save(first)
    for number in range(1, count):
        shutil.copy(first, folder / "ab"[number % 2] / f"{number}.jpg")


def measure(task: str, photos: Path) -> int:
    """Peak resident memory in MB, of this process."""
    from transformers import AutoImageProcessor, CLIPConfig, CLIPModel

    from hf_coop import CoOpTrainer, CoOpTrainingArguments, HFCoOp
    from hf_coop.data import load_image_folder
    from hf_coop.demo import DEMO_CLIP

    text = CLIPConfig.from_pretrained(DEMO_CLIP).text_config.to_dict()
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "patch_size": 16, "image_size": 224}
    clip = CLIPModel(CLIPConfig(text_config={**text, **wide, "vocab_size": 49408}, vision_config=vision))
    clip.name_or_path = str(DEMO_CLIP)
    model = HFCoOp.from_clip(clip, ["a", "b"])
    model.image_processor = AutoImageProcessor.from_pretrained(
        DEMO_CLIP, size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
    )
    if task == "predict":
        model.predict(sorted(photos.rglob("*.jpg")))
    elif task == "train":
        args = CoOpTrainingArguments(output_dir=str(photos.parent / "out"), save_strategy="no", max_text_passes=3)
        CoOpTrainer(model, args, load_image_folder(photos)).train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--task", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(measure(options.task[0], Path(options.task[1])))
        return
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch, "photos")
        photos.mkdir()
        make_photos(photos, options.photos)
        for task in TASKS:
            command = [sys.executable, __file__, "--task", task, str(photos)]
            environment = {**os.environ, "HF_DATASETS_CACHE": scratch, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            found[task] = int(done.stdout.splitlines()[-1])
            if not options.json:
                print(f"{task:<8} {found[task]:6,} MB", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
