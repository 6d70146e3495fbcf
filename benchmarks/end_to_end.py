"""A prompt for 10, 102 and 1,000 classes from given image features, at ViT-B/16's text sizes: seconds, passes, memory.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --n_classes 102 --ways fast paper --bf16
    python benchmarks/end_to_end.py --whole_process

- "fast" and "paper": `CoOpTrainer` with that recipe, 16 images a class. Of the thousands of steps of "paper" a few are
  run and scaled (~) to 200 epochs, for ImageNet's 1,000 classes to the 50 that CoOp gives them;
- "published": 77 tokens a class through transformers' text tower in fp32 in every step of "paper", image features
  given as well (the published code encodes the images anew in each step). At most 102 classes are run.

Weights and image features are random. The prompts are real: the class names of EuroSAT, Oxford Flowers and ImageNet
in CLIP's vocabulary, which is taken from the open_clip_torch wheel unless `--vocabulary` names the file. Each row is
measured in a process of its own.

With `--whole_process` instead: the command `hf-coop train` on the embedded model, by each recipe, from folders of
102 x 16 images to the finished prompt.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset
from PIL import Image
from rich.console import Console
from rich.table import Table
from text_encoder import peak_memory
from torch.nn import functional as F
from train_step import make_clip, plain_class_embeddings
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_coop import CoOpConfig, CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.data.benchmarks import published_classnames
from hf_coop.demo import CLASSNAMES
from hf_coop.training import starting_prompt

DATASETS = {10: "eurosat", 102: "oxford_flowers", 1000: "imagenet"}
SHOTS, BATCH = 16, 32
EPOCHS = {10: 200, 102: 200, 1000: 50}
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2  # so many of those in the file are CLIP's
PUBLISHED_CLASSES = 102  # at most, since 77 tokens for each of 1,000 classes take 35 GiB


def write_tokenizer(vocabulary: Path | None, folder: Path) -> None:
    """CLIP's tokenizer, made of its merges: those of `vocabulary`, or of the wheel that has them."""
    if vocabulary is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*command, "open_clip_torch"], check=True)
        wheel = next(folder.glob("open_clip_torch*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            (folder / VOCABULARY).write_bytes(archive.read(f"open_clip/{VOCABULARY}"))
        vocabulary = folder / VOCABULARY
    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 1 + MERGES]]  # the first line is the version
    characters = list(bytes_to_unicode().values())
    words = [*characters, *(f"{c}</w>" for c in characters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({word: i for i, word in enumerate(words)}, merges).save_pretrained(folder)


def random_features(n_classes: int, n_images: int) -> Dataset:
    """Image features `(N, 512)` around a mean of each class."""
    torch.manual_seed(1)
    labels = torch.arange(n_images) % n_classes
    embeds = F.normalize(torch.randn(n_classes, 512)[labels] + torch.randn(n_images, 512), dim=-1)
    return Dataset.from_dict({"image_embeds": embeds.numpy(), "label": labels.tolist()})


class Stopwatch:
    def __init__(self, device: str) -> None:
        self.device, self.last = device, time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        before, self.last = self.last, time.perf_counter()
        return self.last - before


def measure(way: str, n_classes: int, tokenizer: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: seconds of each phase, text passes, tokens of a pass, and peak memory."""
    run_classes = min(n_classes, PUBLISHED_CLASSES) if way == "published" else n_classes
    names = published_classnames(DATASETS[n_classes])[:run_classes]
    n_steps = EPOCHS[n_classes] * (SHOTS * n_classes // BATCH)
    images = random_features(run_classes, SHOTS * run_classes if way == "fast" else BATCH * args.steps)
    options: dict[str, Any] = {"recipe": "paper", "num_train_epochs": 2}  # the first one warms up
    if way == "fast":
        options = {"recipe": "fast", "max_text_passes": args.max_text_passes}
    with tempfile.TemporaryDirectory() as folder:
        training = CoOpTrainingArguments(
            folder, **options, save_strategy="no", use_cpu=args.device == "cpu", bf16=args.bf16, disable_tqdm=True
        )
        clip, watch = make_clip().to(args.device), Stopwatch(args.device)
        before = psutil.Process().memory_info().rss
        prompt = starting_prompt(training, CoOpConfig, {"tokenizer_name_or_path": tokenizer})
        model = HFCoOp.from_clip(clip, names, **prompt)
        row: dict[str, Any] = {"way": way, "n_classes": n_classes, "prompt_seconds": watch.lap()}
        layout = model.prompt_layer.active_learner.layout
        row["tokens"] = n_classes * 77 if way == "published" else layout.prefix_length + layout.n_tail_tokens
        laps: list[float] = []
        if way == "published":
            row["pass_seconds"] = published_pass(model, images, args) * n_classes / run_classes
        else:
            trainer = CoOpTrainer(model, training, images, callbacks=[lambda *_: laps.append(watch.lap())])
            trainer.encode_datasets()
            row["template_seconds"] = watch.lap()  # of the hand-written prompt that "fast" holds the classes near
            passes = trainer.train().global_step
            first = trainer.state.log_history[0]["step"]
            row["pass_seconds"] = sum(laps[1:]) / (passes - first)
        row["passes"] = passes if way == "fast" else n_steps
        row["training_seconds"] = sum(laps) if way == "fast" else n_steps * row["pass_seconds"]
    on_gpu = args.device == "cuda"
    peak = peak_memory(torch.device(args.device))
    row["peak_gib"] = (peak if on_gpu else before + (peak - before) * n_classes / run_classes) / 2**30
    return row


def published_pass(model: HFCoOp, images: Dataset, args: argparse.Namespace) -> float:
    """Seconds of a step, forward and backward."""
    ctx, scale = model.prompt_layer.active_learner.ctx, model.logit_scale.exp()
    features = torch.tensor(np.asarray(images["image_embeds"][:BATCH], dtype=np.float32), device=args.device)
    labels = torch.tensor(images["label"][:BATCH], device=args.device)
    watch, laps = Stopwatch(args.device), []
    for _ in range(1 + args.steps):  # the first one warms up
        loss = F.cross_entropy(scale * features @ plain_class_embeddings(model).mT, labels)
        torch.autograd.grad(loss, ctx)
        laps.append(watch.lap())
    return sum(laps[1:]) / args.steps


def in_new_process(way: str, n_classes: int, tokenizer: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--row", way, str(n_classes), tokenizer]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def print_rows(rows: list[dict[str, Any]]) -> None:
    title = f"16 shots, {torch.get_num_threads()} threads, torch {torch.__version__} (~ scaled from a few steps)"
    table = Table(title=title)
    columns = ("tokens", "prompt", "template", "s a pass", "passes", "training", "peak GiB")
    for column in ("K", "way", *columns):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for row in rows:
        scaled = "" if row["way"] == "fast" else "~"
        fewer = row["way"] == "published" and row["n_classes"] > PUBLISHED_CLASSES
        table.add_row(
            str(row["n_classes"]),
            row["way"],
            f"{row['tokens']:,}",
            f"{row['prompt_seconds']:.2f} s",
            f"{row['template_seconds']:.2f} s" if "template_seconds" in row else "",
            f"{'~' * fewer}{row['pass_seconds']:.3f}",
            f"{row['passes']:,}",
            scaled + duration(row["training_seconds"]),
            f"{'~' * fewer}{row['peak_gib']:.2f}",
        )
    Console(width=110).print(table)


def write_images(root: Path, names: list[str], per_class: int, seed: int) -> None:
    """One folder a class, of noise around a colour."""
    colours = np.random.default_rng(0).integers(40, 216, (len(names), 1, 1, 3))
    noise = np.random.default_rng(seed)
    for name, colour in zip(names, colours, strict=True):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            pixels = colour + noise.integers(-40, 40, (16, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def whole_process(recipe: str) -> dict[str, Any]:
    """Seconds of `hf-coop train` on the embedded model; its class names are numbers in words, which it can spell."""
    names = [" ".join(CLASSNAMES[int(digit)] for digit in str(number)) for number in range(102)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "train", names, SHOTS, seed=1)
        write_images(root / "test", names, 5, seed=2)
        command = [sys.executable, "-m", "hf_coop_cli", "train", "--model_name_or_path", "demo", "--recipe", recipe]
        command += ["--train_dir", str(root / "train"), "--test_dir", str(root / "test"), "--use_cpu"]
        command += ["--num_shots", str(SHOTS), "--output_dir", str(root / "out")]
        start = time.perf_counter()
        cache = {**os.environ, "HF_DATASETS_CACHE": str(root / "cache")}
        subprocess.run(command, check=True, env=cache, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        seconds = json.loads((root / "out" / "metrics.json").read_text())["seconds"]
    return {"way": recipe, "whole process": round(whole, 1), **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_classes", type=int, nargs="+", choices=DATASETS, default=list(DATASETS), metavar="K")
    parser.add_argument("--ways", nargs="+", choices=("fast", "paper", "published"))
    parser.add_argument("--max_text_passes", type=int, default=100, help="of the recipe fast, 10 or more")
    parser.add_argument(
        "--steps", type=int, default=5, help="that are run of the other ways, after as many to warm up"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="train in bf16 (fast and paper)")
    parser.add_argument("--vocabulary", type=Path, help=f"CLIP's {VOCABULARY}")
    parser.add_argument("--whole_process", action="store_true", help="the command on the embedded model instead")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    parser.set_defaults(ways=["fast", "paper", "published"])
    args = parser.parse_args()
    if args.row:
        way, n_classes, tokenizer = args.row
        print(json.dumps(measure(way, int(n_classes), tokenizer, args)))
        return
    if args.whole_process:
        rows = [whole_process(recipe) for recipe in args.ways if recipe != "published"]
        print(json.dumps(rows, indent=2))
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(args.vocabulary, Path(folder))
            rows = [in_new_process(way, k, folder) for k, way in product(args.n_classes, args.ways)]
        print_rows(rows)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
