"""What a training step costs at ViT-B/16's sizes, K = 102 classes, batch 32: the trainer's, its floor, the plain one.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --device cuda --steps 50

- "trainer": a step of `CoOpTrainer.train()` with cached features, loop, logging and optimizer included;
- "text side": the text encoder's forward and backward alone, which the trainer cannot do without;
- "plain recipe": what the published code does in each step: 32 images of 224 x 224 through the image tower, and 102
  prompts padded to 77 tokens through the text tower, forward and backward.

Weights are random, class names are made up with lengths as in CoOp's data sets. Trainer and text side take turns,
epoch by epoch, so that noise on the machine hits both; medians count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from text_encoder import EOS, FILLER, SOS, tokenized_names
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from hf_coop import CoOpConfig, CoOpTrainer, CoOpTrainingArguments, HFCoOp

N_CTX = 16


def make_clip() -> CLIPModel:
    """A CLIP of ViT-B/16's sizes with random weights."""
    torch.manual_seed(0)
    text = {"bos_token_id": SOS, "eos_token_id": EOS}
    return CLIPModel(CLIPConfig(text_config=text, vision_config={"patch_size": 16}, projection_dim=512)).eval()


def make_model(n_classes: int, device: str) -> HFCoOp:
    """A prompt of 16 vectors on a CLIP of ViT-B/16's sizes."""
    clip = make_clip()
    names = tokenized_names(n_classes)
    config = CoOpConfig(
        classnames=[f"class {k}" for k in range(n_classes)],
        n_ctx=N_CTX,
        token_ids=names.token_ids,
        name_lengths=names.name_lengths,
    )
    return HFCoOp(clip.to(device), config)


def seconds_of(step: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def text_side(model: HFCoOp) -> None:
    """Forward and backward through the text encoder."""
    features = model.prompt_layer.encode_classes()
    torch.autograd.grad(features.float().square().sum(), model.prompt_layer.active_learner.ctx)


def plain_class_embeddings(model: HFCoOp) -> torch.Tensor:
    """Class embeddings `(K, D)` as published: every prompt on its own, 77 tokens each."""
    clip, ctx = model.clip, model.prompt_layer.active_learner.ctx
    tower, n_ctx = clip.text_model.base_layer, len(ctx)
    length = tower.config.max_position_embeddings
    rows = [[SOS, *[FILLER] * n_ctx, *rest] for _, *rest in model.prompt_config.token_ids or []]
    input_ids = torch.tensor([row + [EOS] * (length - len(row)) for row in rows], device=ctx.device)

    def put_context(module: object, args: object, embeds: torch.Tensor) -> torch.Tensor:
        return torch.cat([embeds[:, :1], ctx.expand(len(rows), -1, -1), embeds[:, 1 + n_ctx :]], dim=1)

    hook = tower.embeddings.token_embedding.register_forward_hook(put_context)
    texts = clip.text_projection(tower(input_ids=input_ids).pooler_output)
    hook.remove()
    return F.normalize(texts, dim=-1)


def plain_step(model: HFCoOp, pixels: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step as published: neither images nor prompts are encoded in any better way."""
    with torch.no_grad():
        images = F.normalize(model.clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    logits = model.clip.logit_scale.exp() * images @ plain_class_embeddings(model).mT
    optimizer.zero_grad()
    F.cross_entropy(logits, labels).backward()
    optimizer.step()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each way."""
    model = make_model(args.n_classes, args.device)
    labels = torch.arange(args.batch_size) % args.n_classes
    rows = args.batch_size * args.steps
    data = Dataset.from_dict(
        {"image_embeds": torch.randn(rows, 512).tolist(), "label": labels.repeat(args.steps).tolist()}
    )
    trainer_seconds: list[float] = []
    text_seconds: list[float] = []
    began = [0.0]

    def after_epoch(trainer: CoOpTrainer, row: dict[str, Any]) -> None:
        if args.device == "cuda":
            torch.cuda.synchronize()
        trainer_seconds.append((time.perf_counter() - began[0]) / args.steps)
        text_seconds.append(
            seconds_of(lambda: [text_side(model) for _ in range(args.steps)], args.device) / args.steps
        )
        began[0] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        options = CoOpTrainingArguments(
            output_dir=folder,
            num_train_epochs=args.repeats + 1,
            per_device_train_batch_size=args.batch_size,
            save_strategy="no",
            use_cpu=args.device == "cpu",
        )
        CoOpTrainer(model, options, data, callbacks=[after_epoch]).train()

    optimizer = torch.optim.SGD([model.prompt_layer.active_learner.ctx], lr=0.002, momentum=0.9)
    pixels = torch.randn(args.batch_size, 3, 224, 224, device=args.device)
    labels = labels.to(args.device)
    plain = [
        seconds_of(lambda: plain_step(model, pixels, labels, optimizer), args.device)
        for _ in range(args.plain_repeats)
    ]
    # The first epoch warms up.
    seconds = {
        "trainer": statistics.median(trainer_seconds[1:]),
        "text side": statistics.median(text_seconds[1:]),
        "plain recipe": statistics.median(plain),
    }
    ratios = [step / text for step, text in zip(trainer_seconds[1:], text_seconds[1:], strict=True)]
    return {
        "seconds": seconds,
        "trainer / text side": statistics.median(ratios),
        "plain recipe / trainer": seconds["plain recipe"] / seconds["trainer"],
        "settings": {**vars(args), "torch": torch.__version__, "machine": platform.processor()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_classes", type=int, default=102)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=5, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=7, help="epochs that count")
    parser.add_argument("--plain_repeats", type=int, default=3)
    parser.add_argument("--output", help="a JSON file for the figures")
    args = parser.parse_args()
    figures = measure(args)
    for name, value in figures["seconds"].items():
        print(f"{name:>12}: {value * 1e3:9.1f} ms a step")
    print(f"trainer / text side: {figures['trainer / text side']:.3f} (at most 1.10 wanted)")
    print(f"plain recipe / trainer: {figures['plain recipe / trainer']:.1f} (at least 20 wanted)")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
