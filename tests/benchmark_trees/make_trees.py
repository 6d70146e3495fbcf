#!/usr/bin/env python3
"""Miniature copies of the 15 image sets, laid out on disk as the published code expects them.

    python make_trees.py FOLDER [--seed 0]

`published_splits.json.gz` holds what the published classes read from the tree of seed 0. The images are coloured noise
of 24 x 20 pixels; names, folders and split files have the real form.
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image

FACTS = Path(__file__).parents[2] / "src" / "hf_coop" / "data" / "benchmarks.json"


def picture(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (24, 20), bytes(rng.randrange(256) for _ in range(24 * 20 * 3))).save(path)


def write_split(folder, name, images, items, rng):
    """split_zhou_*.json: {"train": [[path below the image folder, label, class name], …], "val": …, "test": …}."""
    split = {"train": [], "val": [], "test": []}
    order = list(items)
    rng.shuffle(order)  # labels appear in any order in the real files
    for label, classname, paths in order:
        cut = len(paths) // 2, len(paths) // 2 + max(1, len(paths) // 4)
        for key, part in zip(split, (paths[: cut[0]], paths[cut[0] : cut[1]], paths[cut[1] :]), strict=True):
            split[key] += [[str(p.relative_to(images)), label, classname] for p in part]
    (folder / name).write_text(json.dumps(split))


def make_trees(root, seed=0):
    """All 15 sets below a folder, which is returned."""
    rng, root = random.Random(seed), Path(root)
    data = json.loads(FACTS.read_text(encoding="utf-8"))

    def some(key, n):
        names = data[key]["classnames"]
        return sorted(rng.sample(range(len(names)), n)), names

    def count():
        return rng.randint(9, 14)

    def with_split(folder, images, split, key, path_of, n=7):
        base = root / folder
        _, names = some(key, n)
        chosen = rng.sample(names, n)
        items = []
        for label, name in enumerate(chosen):
            paths = [base / images / path_of(label, name, i) for i in range(1, count())]
            for p in paths:
                picture(p, rng)
            items.append((label, name, paths))
        write_split(base, split, base / images, items, rng)

    with_split(
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        "caltech101",
        lambda k, n, i: f"{n}/image_{i:04d}.jpg",
    )
    with_split("oxford_pets", "images", "split_zhou_OxfordPets.json", "oxford_pets", lambda k, n, i: f"{n}_{i}.jpg")
    (root / "oxford_pets/annotations").mkdir()
    with_split(
        "stanford_cars",
        ".",
        "split_zhou_StanfordCars.json",
        "stanford_cars",
        lambda k, n, i: f"{'cars_train' if i % 3 else 'cars_test'}/{k:02d}{i:03d}.jpg",
    )
    with_split(
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        "oxford_flowers",
        lambda k, n, i: f"image_{k:02d}{i:03d}.jpg",
    )
    with_split("food-101", "images", "split_zhou_Food101.json", "food101", lambda k, n, i: f"{n}/{100000 * k + i}.jpg")
    with_split(
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        "sun397",
        lambda k, n, i: f"{n[0]}/{n.replace(' ', '_')}/sun_{k}{i}.jpg",
    )
    with_split("dtd", "images", "split_zhou_DescribableTextures.json", "dtd", lambda k, n, i: f"{n}/{n}_{i:04d}.jpg")
    with_split(
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        "eurosat",
        lambda k, n, i: f"{n.replace(' ', '')}/{n.replace(' ', '')}_{i}.jpg",
    )
    with_split(
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        "ucf101",
        lambda k, n, i: f"{n}/v_{n.replace('_', '')}_g{i:02d}_c01.jpg",
    )

    base = root / "fgvc_aircraft"  # no split file of its own: lists "image variant name"
    variants = rng.sample(data["fgvc_aircraft"]["classnames"], 7)
    lists = {"train": [], "val": [], "test": []}
    for k, name in enumerate(variants):
        for i in range(count()):
            picture(base / "images" / f"{k:02d}{i:05d}.jpg", rng)
            lists[("train", "val", "test")[i % 3]].append(f"{k:02d}{i:05d} {name}")
    (base / "variants.txt").write_text("\n".join(variants) + "\n")
    for key, lines in lists.items():
        rng.shuffle(lines)
        (base / f"images_variant_{key}.txt").write_text("\n".join(lines) + "\n")

    imagenet = list(zip(data["imagenet"]["wnids"], data["imagenet"]["classnames"], strict=True))
    lines = "".join(f"{wnid} {name}\n" for wnid, name in imagenet)
    must = [
        i for i, (_, name) in enumerate(imagenet) if name in ("missile", "sunglasses")
    ]  # names that stand there twice
    picked = sorted({*must, *rng.sample(range(1000), 8)})

    def folders(base, numbers, n, suffix=".JPEG"):
        for k in numbers:
            for _ in range(n()):
                picture(base / imagenet[k][0] / f"{imagenet[k][0]}_{rng.randrange(10**5)}{suffix}", rng)

    folders(root / "imagenet/images/train", picked, count)
    folders(root / "imagenet/images/val", picked, lambda: 3)
    folders(root / "imagenet-sketch/images", picked, lambda: 2, ".JPEG")
    folders(root / "imagenet-adversarial/imagenet-a", picked[::2], lambda: 3, ".jpg")
    folders(root / "imagenet-rendition/imagenet-r", picked[1::2], lambda: 3, ".jpg")
    for readme in ("imagenet-adversarial/imagenet-a", "imagenet-rendition/imagenet-r"):
        (root / readme / "README.txt").write_text("about these images\n")
    for k in range(1000):
        picture(root / "imagenetv2/imagenetv2-matched-frequency-format-val" / str(k) / f"{k:04x}.jpeg", rng)
    for folder in ("imagenet", "imagenetv2", "imagenet-sketch", "imagenet-adversarial", "imagenet-rendition"):
        (root / folder / "classnames.txt").write_text(lines)
    return root


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("folder")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    make_trees(a.folder, a.seed)
    print(a.folder)
