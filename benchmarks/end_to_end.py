"""A whole run of `hf-coop train` on the embedded model: 102 classes, 16 shots, 200 epochs; folders to finished prompt.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --epochs 5
    python benchmarks/end_to_end.py --classnames_file flowers.txt

The images are noise around a colour of each class, 16 x 16 pixels; the features' cache is empty at the start. At most
180 s are wanted on 2 CPU cores. A step's time is proportional to the tokens that the class names take. By default the
names are numbers in words, which the embedded model's small vocabulary has ("five seven": 4 tokens with the full stop
and EOS, as in CLIP's vocabulary a name of two words); most other words it spells almost letter by letter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoTokenizer

from hf_coop.demo import CLASSNAMES, DEMO_CLIP
from hf_coop.encoding import tokenize_classnames


def write_images(root: Path, names: Sequence[str], per_class: int, seed: int) -> None:
    """One folder a class."""
    colours = np.random.default_rng(0).integers(40, 216, (len(names), 1, 1, 3))
    noise = np.random.default_rng(seed)
    for name, colour in zip(names, colours, strict=True):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            pixels = colour + noise.integers(-40, 40, (16, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_classes", type=int, default=102)
    parser.add_argument("--classnames_file", type=Path, help="class names, one a line, instead of numbers in words")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=200)
    args = parser.parse_args()
    if args.classnames_file:
        names = [name.replace("/", " ") for name in args.classnames_file.read_text().splitlines()]
    else:
        names = [" ".join(CLASSNAMES[int(digit)] for digit in str(number)) for number in range(args.n_classes)]
    tokens = tokenize_classnames(AutoTokenizer.from_pretrained(DEMO_CLIP), names).token_ids
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "train", names, args.shots, seed=1)
        write_images(root / "test", names, 5, seed=2)
        command = [sys.executable, "-m", "hf_coop_cli", "train", "--model_name_or_path", "demo"]
        command += ["--train_dir", str(root / "train"), "--test_dir", str(root / "test"), "--use_cpu"]
        command += ["--num_shots", str(args.shots), "--num_train_epochs", str(args.epochs)]
        command += ["--output_dir", str(root / "out")]
        start = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "HF_DATASETS_CACHE": str(root / "cache")})
        whole = time.perf_counter() - start
        seconds = json.loads((root / "out" / "metrics.json").read_text())["seconds"]
    tails = sum(len(ids) - 1 for ids in tokens)
    print(json.dumps({"classes": len(names), "tokens": tails, "whole process": round(whole, 1), **seconds}, indent=2))


if __name__ == "__main__":
    main()
