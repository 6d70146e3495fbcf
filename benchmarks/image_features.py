"""Image features of ViT-B/16's size: transformers' own tower and hf-coop's, in fp32 and in lower precision.

    python benchmarks/image_features.py
    python benchmarks/image_features.py --n_images 16 --threads 1 --processor_time

- "transformers": `CLIPModel.get_image_features` without gradients;
- "hf-coop": `hf_coop.encoding.image_encoder.encode_pixels`, what cached features are made with.

Weights are random, images are noise; decoding is not counted. The ways take turns, so that noise on the machine hits
all alike; the best and the median of the repeats are shown, and the cosines between these features and those of
transformers in fp32.

The floor is the time of the products with the weights alone, 24 * dim² floating-point operations a token and layer and
those of the patches, over the rate that this machine reaches in the same run and dtype: by `torch.mm` on large squares
("torch.mm"), and by what hf-coop uses in the tower's own shape ("product", oneDNN in fp32 on x86).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from hf_coop.encoding.frozen_layers import product
from hf_coop.encoding.image_encoder import TOKENS_AT_A_TIME, encode_pixels

SQUARE = 2048  # rows of the large square matrices


def seconds_of(run: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def ways(clip: CLIPModel, pixels: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    @torch.no_grad()
    def transformers() -> torch.Tensor:
        return torch.cat([clip.get_image_features(pixel_values=part).pooler_output for part in pixels.split(64)])

    return {"transformers": transformers, "hf-coop": lambda: encode_pixels(clip, pixels)}


def products(clip: CLIPModel, device: str) -> dict[str, tuple[Callable[[], Any], float]]:
    """Plain matrix products to measure the machine by, with their floating-point operations."""
    options: dict[str, Any] = {"dtype": clip.dtype, "device": device}
    one, other = torch.randn(2, SQUARE, SQUARE, **options)
    weight = clip.vision_model.encoder.layers[0].mlp.fc1.weight
    inputs = torch.randn(TOKENS_AT_A_TIME, weight.shape[1], **options)
    return {
        "torch.mm": (lambda: torch.mm(one, other), 2 * SQUARE**3),
        "product": (lambda: product(inputs, weight), 2 * TOKENS_AT_A_TIME * weight.numel()),
    }


def flops_of(clip: CLIPModel, n_images: int) -> int:
    config, embeddings = clip.config.vision_config, clip.vision_model.embeddings
    per_token = 24 * config.hidden_size**2 * config.num_hidden_layers
    patches = 2 * embeddings.num_patches * embeddings.patch_embedding.weight.numel()
    return n_images * (embeddings.num_positions * per_token + patches)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clock = time.process_time if args.processor_time else time.perf_counter
    exact = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}, projection_dim=512)).eval().requires_grad_(False)
    pixels = torch.randn(args.n_images, 3, 224, 224)
    runs, features, rates = {}, {}, {}
    for name in args.dtypes:
        dtype = getattr(torch, name)
        clip = CLIPModel(exact.config).eval().requires_grad_(False)
        clip.load_state_dict(exact.state_dict())
        clip = clip.to(args.device, dtype)
        for way, run in ways(clip, pixels.to(args.device, dtype)).items():
            runs[name, way], features[name, way] = run, run().float()
        for way, (run, flops) in products(clip, args.device).items():
            runs[name, way], rates[name, way] = run, flops
            run()
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(args.repeats):
        for key, run in runs.items():
            many = 10 if key in rates else 1
            seconds[key].append(seconds_of(lambda: [run() for _ in range(many)], args.device, clock) / many)  # noqa: B023
    reference, work = features[args.dtypes[0], "transformers"], flops_of(exact, args.n_images)
    results = []
    for name, way in features:
        best = min(seconds[name, way])
        floors = {kind: work * min(seconds[name, kind]) / flops for (of, kind), flops in rates.items() if of == name}
        results.append(
            {
                "dtype": name,
                "way": way,
                "seconds": best,
                "median_seconds": statistics.median(seconds[name, way]),
                "images_per_second": args.n_images / best,
                "floors": floors,
                "cosine": float(F.cosine_similarity(features[name, way], reference).min()),
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_images", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="the first is what others are to")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument(
        "--processor_time",
        action="store_true",
        help="count processor time, with --threads 1, where other programs use the machine too",
    )
    parser.add_argument("--output", help="a JSON file for the figures")
    args = parser.parse_args()
    results = measure(args)
    first = results[0]["seconds"]
    for row in results:
        floors = ", ".join(f"{row['seconds'] / floor:.2f} x {kind} floor" for kind, floor in row["floors"].items())
        print(
            f"{row['dtype']:>9} {row['way']:>12}: {row['seconds']:7.3f} s (median {row['median_seconds']:.3f}), "
            f"{row['images_per_second']:6.1f} images/s, {first / row['seconds']:.2f} times faster, {floors}, "
            f"least cosine {row['cosine']:.5f}"
        )
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({"settings": vars(args), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
