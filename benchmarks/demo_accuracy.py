"""Accuracy on the embedded digits over shots and seeds: hand-written prompts, CoOp, and a linear probe.

CoOp learns by the default recipe, as in `hf-coop demo`. `--on pool` measures on the images of the few-shot pool that
are not among the shots: what recipe and model were chosen by. `--on test` measures on the 900 test images: the rows of
the README's table.
"""

from __future__ import annotations

import argparse
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from hf_coop.demo import HAND_WRITTEN_TEMPLATES, load_digits_dataset
from hf_coop.evaluation import BASELINES, FewShotFeatures
from hf_coop.experiments.demo import few_shot, make_trainer

METHODS = {
    "best of 15 hand-written prompts": None,
    "CoOp, one context for all classes": {},
    "CoOp, a context for each class": {"class_specific_context": True},
    "linear probe": None,
}


def measure(shots: int, seed: int, on: str) -> dict[str, float]:
    """Accuracy of each method with `shots` images a class."""
    digits = load_digits_dataset()
    pool = digits["train"]
    train = few_shot(pool, shots, seed)
    images = set(few_shot(pool.add_column("row", list(range(len(pool)))), shots, seed)["row"][:])
    test = digits["test"] if on == "test" else pool.select([i for i in range(len(pool)) if i not in images])
    labels = np.asarray(test["label"][:])
    result = {}
    with TemporaryDirectory() as folder:
        for name, config in METHODS.items():
            if config is not None:
                trainer = make_trainer(train, seed, Path(folder), **config)
                trainer.args.disable_tqdm = True
                with redirect_stdout(StringIO()):  # its lines of progress
                    trainer.train()
                result[name] = trainer.predict(test).metrics["accuracy"]
        test_embeds, train_embeds = (trainer.image_embeds(split)[:, 0] for split in (test, train))
        by_template = [
            trainer.model.zero_shot_logits(test_embeds, template).argmax(-1).numpy() == labels
            for template in HAND_WRITTEN_TEMPLATES
        ]
        result["best of 15 hand-written prompts"] = float(max(hits.mean() for hits in by_template))
        model = trainer.model
        features = FewShotFeatures(
            train_embeds, train["label"][:], model.template_embeddings(HAND_WRITTEN_TEMPLATES[0]), model.logit_scale
        )
        probed = BASELINES["linear_probe"].fit(features)(test_embeds)
        result["linear probe"] = float((probed.argmax(1).numpy() == labels).mean())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--on", choices=("pool", "test"), default="test")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()

    runs = {shots: [measure(shots, seed, args.on) for seed in args.seeds] for shots in args.shots}
    console, table = Console(width=120), Table(box=MARKDOWN)
    console.print(f"accuracy in % on the {args.on} images, mean ± standard deviation over seeds {args.seeds}")
    for column in ("", *(f"{shots} shots" if shots > 1 else "1 shot" for shots in args.shots)):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name in METHODS:
        cells = [[100 * run[name] for run in runs[shots]] for shots in args.shots]
        spread = [f"{mean(c):.1f} ± {stdev(c):.1f}" if len(c) > 1 else f"{c[0]:.1f}" for c in cells]
        table.add_row(name, *spread)
    console.print(table)
    for shots in args.shots:
        gains = [
            100 * (run["CoOp, one context for all classes"] - run["best of 15 hand-written prompts"])
            for run in runs[shots]
        ]
        print(f"{shots} shots: CoOp less the best hand-written prompt, by seed: {[round(g, 1) for g in gains]} points")
    if args.output:
        args.output.write_text(json.dumps({"on": args.on, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
