"""Seconds that each baseline takes at ImageNet's size: 1,000 classes, 16 shots, 4 validation images, 512 numbers each.

The features are random, around one centre a class and one for all images, as long as CLIP's.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from hf_coop.evaluation import BASELINES, FewShotFeatures

LENGTH, LOGIT_SCALE = 10.0, 4.6052  # of CLIP's image features; log 100


def random_features(classes: int, shots: int, validation: int, width: int) -> FewShotFeatures:
    """Shots, validation images and text features of classes that can be told apart."""
    torch.manual_seed(0)
    centres = 0.55 * torch.randn(classes, width) + 2 * torch.randn(width)

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(classes).repeat(count)
        return LENGTH * F.normalize(centres[labels] + 0.9 * torch.randn(len(labels), width), dim=-1), labels

    text = centres + 1.2 * torch.randn(classes, width)
    return FewShotFeatures(*images(shots), text, LOGIT_SCALE, *(images(validation) if validation else ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), choices=list(BASELINES))
    args = parser.parse_args()

    table = Table(box=MARKDOWN)
    for column in ("", "fixed settings", "chosen on validation images", "logits of 1,000 images"):
        table.add_column(column, justify="right" if column else "left")
    for name in args.baselines:
        cells = []
        for validation in (0, 4):
            features = random_features(args.classes, args.shots, validation, args.width)
            start = time.perf_counter()
            head = BASELINES[name].fit(features)
            cells.append(f"{time.perf_counter() - start:.1f} s")
        start = time.perf_counter()
        head(features.train_embeds[:1000])
        table.add_row(name, *cells, f"{time.perf_counter() - start:.2f} s")
    console = Console(width=120)
    console.print(f"{torch.get_num_threads()} threads, {args.classes} classes, {args.shots} shots, width {args.width}")
    console.print(table)


if __name__ == "__main__":
    main()
