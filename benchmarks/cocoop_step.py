"""A CoCoOp training step's text side against the plain way: time and peak memory, at ViT-B/16's text sizes.

    python benchmarks/cocoop_step.py

The plain way is the published code's: image by image, all K class prompts at 77 tokens through the text tower, one
backward pass for the batch. Weights are random, the images are given as embeddings, and both ways compute the same
loss. Both ways take turns in one process to be timed; memory is the peak of a fresh process each, Python, torch and
the model included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from hf_coop import CoCoOpConfig, HFCoOp

SOS, STOP, EOS = 49406, 269, 49407
MAX_TOKENS = 77


def build_model(n_classes: int, n_ctx: int, chunk: int) -> HFCoOp:
    """CoCoOp on a CLIP of ViT-B/16's text sizes; class names have 1, 2 or 3 tokens in turn."""
    torch.manual_seed(0)
    vision = {"num_hidden_layers": 1, "patch_size": 16}  # not used: the images are given as embeddings
    clip = CLIPModel(CLIPConfig(text_config={"bos_token_id": SOS, "eos_token_id": EOS}, vision_config=vision))
    lengths = [1 + k % 3 for k in range(n_classes)]
    config = CoCoOpConfig(
        classnames=[f"class {k}" for k in range(n_classes)],
        n_ctx=n_ctx,
        token_ids=[[SOS, *range(1000 + 10 * k, 1000 + 10 * k + n), STOP, EOS] for k, n in enumerate(lengths)],
        name_lengths=lengths,
        max_prompts_per_chunk=chunk,
    )
    return HFCoOp(clip, config)


def plain_loss(model: HFCoOp, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss as the published code computes it."""
    clip, learner = model.clip, model.prompt_layer.active_learner
    n_ctx, token_ids = len(learner.ctx), model.prompt_config.token_ids
    input_ids = torch.full((len(token_ids), MAX_TOKENS), EOS)
    for row, (sos, *rest) in zip(input_ids, token_ids, strict=True):
        row[: 1 + n_ctx + len(rest)] = torch.tensor([sos, *[STOP] * n_ctx, *rest])
    images = F.normalize(images, dim=-1)
    rows = []
    for image, ctx in zip(images, learner.ctx + learner.meta_net(images)[:, None], strict=True):

        def put_context(module: object, args: object, embeds: torch.Tensor, ctx: torch.Tensor = ctx) -> torch.Tensor:
            return torch.cat([embeds[:, :1], ctx.expand(len(embeds), -1, -1), embeds[:, 1 + n_ctx :]], dim=1)

        hook = clip.text_model.embeddings.token_embedding.register_forward_hook(put_context)
        classes = clip.text_projection(clip.text_model(input_ids=input_ids).pooler_output)
        hook.remove()
        rows.append(clip.logit_scale.exp() * F.normalize(classes, dim=-1) @ image)
    return F.cross_entropy(torch.stack(rows), labels)


def make_step(batch: int, sizes: tuple[int, int, int]) -> tuple[HFCoOp, torch.Tensor, torch.Tensor]:
    model = build_model(*sizes)
    return model, torch.randn(batch, 512), torch.arange(batch) % sizes[0]


WAYS: dict[str, Callable[[HFCoOp, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "plain": plain_loss,
    "hf-coop": lambda model, images, labels: model(image_embeds=images, labels=labels).loss,
}


def measure_time(batch: int, sizes: tuple[int, int, int], steps: int) -> dict[str, float]:
    """Median seconds of a forward and backward pass of each way; they take turns, so both see the same machine."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    model, images, labels = make_step(batch, sizes)
    for _ in range(1 + steps):  # one to warm up
        for way, loss in WAYS.items():
            model.zero_grad()
            start = time.perf_counter()
            loss(model, images, labels).backward()
            seconds[way].append(time.perf_counter() - start)
    return {way: statistics.median(values[1:]) for way, values in seconds.items()}


def measure_memory(way: str, batch: int, sizes: tuple[int, int, int]) -> dict[str, float]:
    """This process's peak memory after a forward and backward pass, and what they computed."""
    model, images, labels = make_step(batch, sizes)
    loss = WAYS[way](model, images, labels)
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gradient = model.prompt_layer.active_learner.ctx.grad.norm().item()
    return {"gib": peak / 2**30, "loss": loss.item(), "gradient": gradient}


def in_a_process(what: str, batch: int, args: argparse.Namespace) -> dict[str, float]:
    options = {"measure": what, "batch": batch, "classes": args.classes, "n-ctx": args.n_ctx, "steps": args.steps}
    options["max-prompts-per-chunk"] = args.max_prompts_per_chunk
    command = [sys.executable, "-W", "ignore", __file__, *(f"--{name}={value}" for name, value in options.items())]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="images a step, for the comparison")
    parser.add_argument("--large-batch", type=int, default=32, help="images a step, for hf-coop alone")
    parser.add_argument("--classes", type=int, default=51)
    parser.add_argument("--n-ctx", type=int, default=4)
    parser.add_argument(
        "--max-prompts-per-chunk", type=int, default=CoCoOpConfig.max_prompts_per_chunk, help="see CoCoOpConfig"
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each way; the median counts")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--measure", choices=["time", *WAYS], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.measure:
        sizes = args.classes, args.n_ctx, args.max_prompts_per_chunk
        timing = args.measure == "time"
        step = (
            measure_time(args.batch, sizes, args.steps) if timing else measure_memory(args.measure, args.batch, sizes)
        )
        print(json.dumps(step))
        return
    seconds = in_a_process("time", args.batch, args)
    plain, ours = (in_a_process(way, args.batch, args) for way in WAYS)
    large = in_a_process("hf-coop", args.large_batch, args)
    figures = {
        "times_faster": seconds["plain"] / seconds["hf-coop"],
        "memory_ratio": ours["gib"] / plain["gib"],
        "gradient_difference": abs(ours["gradient"] / plain["gradient"] - 1),
    }
    if args.json:
        runs = {"seconds": seconds, "plain": plain, "hf-coop": ours, "large_batch": large}
        print(json.dumps({**figures, "threads": torch.get_num_threads(), **runs}))
        return
    threads = torch.get_num_threads()
    table = Table(title=f"CoCoOp step, K={args.classes}, M={args.n_ctx}, {threads} threads, torch {torch.__version__}")
    for column in ("way", "batch", "seconds", "peak GiB", "loss"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, result in (("plain", plain), ("hf-coop", ours)):
        table.add_row(way, str(args.batch), f"{seconds[way]:.2f}", f"{result['gib']:.2f}", f"{result['loss']:.6f}")
    table.add_row("hf-coop", str(args.large_batch), "", f"{large['gib']:.2f}", f"{large['loss']:.6f}")
    console = Console()
    console.print(table)
    console.print(
        f"{figures['times_faster']:.1f} times faster, {figures['memory_ratio']:.2f} of the peak memory, "
        f"gradient norms within {figures['gradient_difference']:.0e} of each other"
    )


if __name__ == "__main__":
    main()
