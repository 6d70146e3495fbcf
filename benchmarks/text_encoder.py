"""Encoding K class prompts, forward and backward, three ways, at ViT-B/16's text sizes: time, memory, and the floor.

    python benchmarks/text_encoder.py
    python benchmarks/text_encoder.py --n_classes 102 --dtypes float32 --repeats 5 --output results.json

- "77 tokens": transformers' own text tower on every prompt padded to its 77 positions, as the published code does;
- "cut at EOS": the same, padded to the longest prompt;
- "shared prefix": `hf_coop.encoding.text_encoder.encode_prompts`.

Weights are random. The backward pass goes to the context vectors; the tower is frozen. The ways take turns, so that
noise on the machine hits all alike, and the median counts. Each peak of memory is that of a process of its own, with
Python, torch and the weights in it (on CUDA: of allocated device memory). A way that would process more than
`--max_tokens` tokens runs on as many classes as that allows, and its time and memory are scaled by the classes (~).

The floor is the time of the shared prefix's products with the weights alone: 24 * dim² floating-point operations a
token and layer (4 attention projections, 2 MLP matrices of 4 * dim) forward and as many backward, over the rate that
this machine reaches in the same run and dtype: in large square products, or in the encoder's own shapes by
`torch.nn.functional.linear` or by what hf-coop uses (oneDNN in fp32 on x86), whichever is highest. The first two rates
are that of the BLAS which torch was built with.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from transformers import AutoModel, CLIPTextConfig

from hf_coop.encoding import encode_prompts
from hf_coop.encoding.frozen_layers import product
from hf_coop.encoding.prompts import PromptLayout, TokenizedClassnames

SOS, FILLER, STOP, EOS = 49406, 0, 269, 49407
# Tokens of class names: the names of CoOp's 11 datasets have 1.9 words on average, with CLIP's BPE 1 to 2 tokens each.
NAME_LENGTHS = (2, 1, 3, 2, 4, 2, 1, 3, 2, 3, 1, 2, 4, 2, 3, 1, 6, 2, 3, 4)
WAYS = ("77 tokens", "cut at EOS", "shared prefix")
SQUARE = 2048  # rows of the large square matrices


def tokenized_names(n_classes: int) -> TokenizedClassnames:
    """Made-up names whose numbers of tokens go round `NAME_LENGTHS`."""
    lengths = [NAME_LENGTHS[k % len(NAME_LENGTHS)] for k in range(n_classes)]
    ids = [[SOS, *range(1000 + 7 * k, 1000 + 7 * k + n), STOP, EOS] for k, n in enumerate(lengths)]
    return TokenizedClassnames(ids, lengths)


class Setting:
    """The tower, the prompts and the upstream gradient of one measurement."""

    def __init__(
        self, n_classes: int, n_ctx: int, dtype: str, device: str, attention: str, max_tokens: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = CLIPTextConfig(bos_token_id=SOS, eos_token_id=EOS)
        tower = AutoModel.from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
        self.tower = tower.requires_grad_(False).eval().to(device)
        self.config = config
        self.names = tokenized_names(n_classes)
        self.layout = PromptLayout.build(self.names, n_ctx)
        self.max_tokens = max_tokens
        self.ctx = torch.empty(n_ctx, config.hidden_size, device=device).normal_(std=0.02).requires_grad_()
        self.upstream = torch.randn(n_classes, config.hidden_size, device=device)

    def padded_length(self, way: str) -> int:
        return self.config.max_position_embeddings if way == "77 tokens" else self.layout.longest

    def n_measured(self, way: str) -> int:
        """How many of the classes this way is run on."""
        n_classes = len(self.layout)
        return n_classes if way == "shared prefix" else min(n_classes, self.max_tokens // self.padded_length(way))

    def n_tokens(self, way: str) -> int:
        """Tokens that all classes take."""
        if way == "shared prefix":
            return self.layout.prefix_length + self.layout.n_tail_tokens
        return len(self.layout) * self.padded_length(way)

    def features(self, way: str, n_classes: int) -> torch.Tensor:
        """Pooled features `(n_classes, dim)` of the first classes."""
        if way != "shared prefix":
            return self.features_padded(n_classes, self.padded_length(way))
        names = TokenizedClassnames(self.names.token_ids[:n_classes], self.names.name_lengths[:n_classes])
        whole = n_classes == len(self.layout)
        layout = self.layout if whole else PromptLayout.build(names, len(self.ctx))
        return encode_prompts(self.tower, layout, self.ctx[None])[0]

    def features_padded(self, n_classes: int, length: int) -> torch.Tensor:
        """Each prompt on its own, through the tower's own forward, the context put in place of filler embeddings."""
        n_ctx, device = len(self.ctx), self.ctx.device
        rows = [[SOS, *[FILLER] * n_ctx, *rest] for _, *rest in self.names.token_ids[:n_classes]]
        input_ids = torch.tensor([row + [EOS] * (length - len(row)) for row in rows], device=device)

        def put_context(module: object, args: object, embeds: torch.Tensor) -> torch.Tensor:
            ctx = self.ctx.to(embeds.dtype).expand(n_classes, -1, -1)
            return torch.cat([embeds[:, :1], ctx, embeds[:, 1 + n_ctx :]], dim=1)

        hook = self.tower.embeddings.token_embedding.register_forward_hook(put_context)
        try:
            return self.tower(input_ids=input_ids).pooler_output
        finally:
            hook.remove()

    def gradient(self, way: str, n_classes: int) -> torch.Tensor:
        """One training step's text side: forward, and backward to the context."""
        loss = (self.features(way, n_classes).float() * self.upstream[:n_classes]).sum()
        return torch.autograd.grad(loss, self.ctx)[0]

    def products(self) -> dict[str, tuple[Callable[[], None], float]]:
        """Plain matrix products to measure the machine by, with their floating-point operations."""
        options: dict[str, Any] = {"dtype": self.tower.dtype, "device": self.ctx.device}
        linears = [module for module in self.tower.encoder.modules() if isinstance(module, torch.nn.Linear)]
        n_tokens = self.n_tokens("shared prefix")
        inputs = {width: torch.randn(n_tokens, width, **options) for width in {x.in_features for x in linears}}
        one, other = torch.randn(2, SQUARE, SQUARE, **options)

        def encoder_shapes() -> None:
            for linear in linears:
                F.linear(inputs[linear.in_features], linear.weight)

        def encoder_products() -> None:
            for linear in linears:
                product(inputs[linear.in_features], linear.weight)

        flops = 2 * n_tokens * sum(linear.weight.numel() for linear in linears)
        return {
            "large squares": (lambda: torch.mm(one, other), 2 * SQUARE**3),
            "encoder shapes": (encoder_shapes, flops),
            "hf-coop's products": (encoder_products, flops),
        }

    def flops(self) -> int:
        """Of the shared prefix's products with the weights; the weights are frozen, so backward is one more each."""
        per_token_and_layer = 24 * self.config.hidden_size**2
        return 2 * per_token_and_layer * self.config.num_hidden_layers * self.n_tokens("shared prefix")


def timed(run: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = clock()
    run()
    synchronize()
    return clock() - start


def measure_time(setting: Setting, repeats: int, processor_time: bool) -> dict[str, Any]:
    """Median seconds of each way and of plain products, all taking turns; how far the gradients are apart."""
    device, clock = str(setting.ctx.device), time.process_time if processor_time else time.perf_counter
    gradients = {way: setting.gradient(way, setting.n_measured("77 tokens")) for way in WAYS}  # also warms up
    expected = gradients["77 tokens"]
    steps: dict[str, Callable[[], Any]] = {
        way: lambda way=way: setting.gradient(way, setting.n_measured(way)) for way in WAYS
    }
    products = setting.products()
    runs = steps | {name: run for name, (run, _) in products.items()}
    runs["shared prefix"]()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run, device, clock))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rates = {name: flops / medians[name] for name, (_, flops) in products.items()}
    return {
        "seconds": {way: medians[way] * len(setting.layout) / setting.n_measured(way) for way in WAYS},
        "all_seconds": {way: seconds[way] for way in WAYS},
        "measured_classes": {way: setting.n_measured(way) for way in WAYS},
        "tokens": {way: setting.n_tokens(way) for way in WAYS},
        "gradient_difference": {way: float((gradients[way] - expected).norm() / expected.norm()) for way in WAYS},
        "gflops_per_second": {name: rate / 1e9 for name, rate in rates.items()},
        "floor_seconds": setting.flops() / max(rates.values()),
        "blas_floor_seconds": setting.flops() / max(rates["large squares"], rates["encoder shapes"]),
    }


def measure_memory(setting: Setting, way: str) -> float:
    """Peak memory of this process in GiB after one step."""
    n_classes = setting.n_measured(way)
    device = setting.ctx.device
    before = torch.cuda.memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    setting.gradient(way, n_classes)
    return (before + (peak_memory(device) - before) * len(setting.layout) / n_classes) / 2**30


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process ever took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_new_process(setting: dict[str, Any], **measurement: Any) -> Any:
    """Measure one thing in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps([setting, measurement])]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"measuring {measurement} at {setting} failed ({result.returncode})")
    return json.loads(result.stdout)


def measure(setting: dict[str, Any], measurement: dict[str, Any]) -> Any:
    function = measure_memory if "way" in measurement else measure_time
    return function(Setting(**setting), **measurement)


def results_table(results: list[dict[str, Any]]) -> Table:
    """The results of one dtype."""
    table = Table(title=f"{results[0]['dtype']}, forward and backward (~ scaled from fewer classes)", box=SIMPLE)
    columns = ("K", "way", "tokens", "seconds", "ms a\nclass", "times\nfaster", "peak\nGiB", "gradient\ndifference")
    for column in (*columns, "times\nfloor"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for result in results:
        seconds = result["seconds"]
        for way in WAYS:
            about = "~" if result["measured_classes"][way] < result["n_classes"] else ""
            table.add_row(
                str(result["n_classes"]),
                way,
                f"{result['tokens'][way]:,}",
                f"{about}{seconds[way]:.3f}",
                f"{1000 * seconds[way] / result['n_classes']:.2f}",
                f"{seconds['77 tokens'] / seconds[way]:.1f}",
                f"{about}{result['peak_gib'][way]:.2f}",
                f"{result['gradient_difference'][way]:.1e}",
                f"{seconds[way] / result['floor_seconds']:.2f}" if way == "shared prefix" else "",
                end_section=way == WAYS[-1],
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_classes", type=int, nargs="+", default=[10, 102, 400, 1000], metavar="K")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--n_ctx", type=int, default=16, help="context vectors, M")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way, after one to warm up")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--attention", default="sdpa", help="attention implementation of the padded ways: sdpa or eager"
    )
    parser.add_argument("--max_tokens", type=int, default=8192, help="at a time, in the padded ways")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument(
        "--processor_time",
        action="store_true",
        help="count processor time, with --threads 1, where other programs use the machine too",
    )
    parser.add_argument("--output", help="JSON file for all figures")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return

    console = Console(width=None if sys.stdout.isatty() else 100)
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    console.print(f"{options.device}: {machine}; attention of the padded ways: {options.attention}")
    results = []
    for dtype in options.dtypes:
        for n_classes in options.n_classes:
            setting = {"n_classes": n_classes, "dtype": dtype}
            setting |= {
                name: getattr(options, name) for name in ("n_ctx", "device", "attention", "max_tokens", "threads")
            }
            with console.status(f"{n_classes} classes in {dtype}"):
                result = setting | in_new_process(
                    setting, repeats=options.repeats, processor_time=options.processor_time
                )
                result["peak_gib"] = {way: in_new_process(setting, way=way) for way in WAYS}
            rates = ", ".join(f"{rate:.0f} in {name}" for name, rate in result["gflops_per_second"].items())
            floors = f"floor {result['floor_seconds']:.3f} s, BLAS {result['blas_floor_seconds']:.3f} s"
            console.print(f"K={n_classes} {dtype}: GFLOP/s {rates}; {floors}")
            results.append(result)
        console.print(results_table([result for result in results if result["dtype"] == dtype]))
    if options.output:
        with open(options.output, "w") as file:
            json.dump({"machine": machine, "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
