"""Base-to-new generalisation (CoCoOp, arXiv 2203.05557, section 4.1): what a prompt is worth on unseen classes.

    accelerate launch examples/base_to_new.py --train_dir flowers/train --test_dir flowers/test --output_dir b2n

CoOp and CoCoOp, or the methods that --methods names, learn from the first half of the classes ("base") and are tested
on it and on the other half ("new"), beside zero-shot's hand-written prompt, over several seeds. All start from
"a photo of a", as in the paper. Takes the options of train.py. Offline, on the embedded model and images:
--model_name_or_path demo --dataset_name demo
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from train import DataArguments, ModelArguments, PromptArguments, run_script
from transformers import set_seed

from hf_coop import CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.data import classnames_of, few_shot_splits, subsample_classes
from hf_coop.demo import DEMO_CLIP
from hf_coop.encoding import check_templates
from hf_coop.files import staged_folder
from hf_coop.training import check_output_dir, list_checkpoints, wants_resume
from hf_coop.tuners import config_class_of, prompt_options

ZERO_SHOT = "zero_shot"
SCORES = {"base": "base", "new": "new", "harmonic_mean": "H"}
CTX_INIT = "a photo of a"

Scores = dict[str, float]


@dataclass
class BaseToNewArguments:
    methods: list[str] = field(
        default_factory=lambda: ["coop", "cocoop"], metadata={"help": "What to learn by; zero-shot stands beside."}
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "One run of each method a seed."})

    def __post_init__(self) -> None:
        self.labels = {method: config_class_of(method).label for method in self.methods}


def score(base: float, new: float) -> Scores:
    """Both accuracies and their harmonic mean."""
    return {"base": base, "new": new, "harmonic_mean": 2 * base * new / (base + new) if base + new else 0.0}


def evaluate_zero_shot(trainer: CoOpTrainer, base: Any, new: Any, template: str) -> Scores:
    """Accuracy of the hand-written prompt; the prompt that `trainer` learns is not used."""
    accuracies = []
    for split in (base["test"], new["test"]):
        trainer.model.set_classnames(classnames_of(split))
        guesses = trainer.model.zero_shot_logits(trainer.image_embeds(split)[:, 0], template).argmax(-1)
        accuracies.append((guesses.cpu().numpy() == split["label"][:]).mean().item())
    trainer.model.set_classnames(classnames_of(base["test"]))
    return score(*accuracies)


def evaluate_learned(trainer: CoOpTrainer, base: Any, new: Any) -> Scores:
    """Train on the base classes, save, then put the learned context in front of the new ones."""
    trainer.train()
    trainer.save_model()
    on_base = trainer.evaluate(base["test"])["accuracy"]
    trainer.model.set_classnames(classnames_of(new["test"]))
    return score(on_base, trainer.evaluate(new["test"])["accuracy"])


def run_arguments(args: CoOpTrainingArguments, method: str, seed: int) -> CoOpTrainingArguments:
    """The arguments of one run."""
    folder = str(Path(args.output_dir, f"{method}-seed{seed}"))
    # A run that is done but kept no checkpoint is done again when the others are resumed.
    again = wants_resume(args.resume_from_checkpoint) and not list_checkpoints(folder)
    return replace(args, seed=seed, output_dir=folder, overwrite_output_dir=args.overwrite_output_dir or again)


def run(
    settings: BaseToNewArguments,
    model_args: ModelArguments,
    prompt_args: Any,
    data_args: DataArguments,
    args: CoOpTrainingArguments,
) -> dict[str, Any]:
    """All runs; returns what `base_to_new.json` holds."""
    args = replace(args, recipe=args.recipe or "paper")  # a protocol of the papers, so by their recipes unless told
    runs = {(m, s): run_arguments(args, m, s) for s in settings.seeds for m in settings.methods}
    options = prompt_options(prompt_args)
    for method in settings.methods:
        config_class_of(method)(**options)  # refuses what one of them does not have, which would not compare
    check_templates(data_args.zero_shot_template)
    for run_args in runs.values():
        check_output_dir(run_args.output_dir, run_args.resume_from_checkpoint, run_args.overwrite_output_dir)
    splits = replace(data_args, num_shots=0, subsample_classes="all").load(seed=0)
    if "test" not in splits:
        raise ValueError("no test images: give test_dir, or test_split of a data set that has one")
    path = DEMO_CLIP if model_args.model_name_or_path == "demo" else model_args.model_name_or_path
    if not {"n_ctx", "ctx_init"} & options.keys():
        options["ctx_init"] = CTX_INIT

    labels = {ZERO_SHOT: "zero-shot", **settings.labels}
    scores: dict[str, list[Scores]] = {method: [] for method in labels}
    for (method, seed), run_args in runs.items():
        sampled = few_shot_splits(splits, data_args.num_shots, seed)
        base, new = subsample_classes(sampled, "base"), subsample_classes(sampled, "new")
        set_seed(seed)
        model = HFCoOp.from_clip(
            path, classnames_of(base["train"]), method, revision=model_args.model_revision, **options
        )
        trainer = CoOpTrainer(model, run_args, base["train"])
        is_main = trainer.accelerator.is_main_process
        if method == settings.methods[0]:
            scores[ZERO_SHOT].append(evaluate_zero_shot(trainer, base, new, data_args.zero_shot_template))
        scores[method].append(evaluate_learned(trainer, base, new))
        if is_main:
            found = ", ".join(f"{label} {scores[method][-1][name]:.1%}" for name, label in SCORES.items())
            print(f"{labels[method]}, seed {seed}: {found}", flush=True)

    content = {
        "settings": {
            "model": asdict(model_args),
            "prompt": options,
            "data": asdict(data_args),
            "training": args.to_dict(),
        }
    }
    content["settings"]["base_to_new"] = asdict(settings)
    result = {"scores": scores, "mean": summarise(scores, fmean), "std": summarise(scores, pstdev), **content}
    if is_main:
        table = markdown_table(result, labels, settings.seeds)
        with staged_folder(args.output_dir) as folder:
            Path(folder, "base_to_new.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            Path(folder, "base_to_new.md").write_text(table, encoding="utf-8")
            plot(result, labels, Path(folder, "base_to_new.png"))
        print(f"\n{table}\nsaved to {args.output_dir}")
    return result


def summarise(scores: dict[str, list[Scores]], statistic: Any) -> dict[str, Scores]:
    """A statistic over seeds of each score of each method."""
    return {m: {name: statistic([row[name] for row in rows]) for name in SCORES} for m, rows in scores.items()}


def markdown_table(result: dict[str, Any], labels: dict[str, str], seeds: Sequence[int]) -> str:
    """Accuracy in percent, mean ± standard deviation over the seeds."""
    lines = [f"| method | {' | '.join(SCORES.values())} |", "| --- |" + " ---: |" * len(SCORES)]
    for method, name in labels.items():
        mean, std = result["mean"][method], result["std"][method]
        cells = [f"{100 * mean[key]:.1f} ± {100 * std[key]:.1f}" for key in SCORES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds_used = ", ".join(map(str, seeds))
    return "\n".join([*lines, "", f"Test accuracy in %, mean ± standard deviation over seeds {seeds_used}.", ""])


def plot(result: dict[str, Any], labels: dict[str, str], path: Path) -> None:
    """The table as bars."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, width = figure.subplots(), 0.8 / len(labels)
    for number, (method, name) in enumerate(labels.items()):
        heights = [100 * result["mean"][method][key] for key in SCORES]
        errors = [100 * result["std"][method][key] for key in SCORES]
        places = [column + (number - (len(labels) - 1) / 2) * width for column in range(len(SCORES))]
        axes.bar_label(axes.bar(places, heights, width, yerr=errors, capsize=3, label=name), fmt="%.1f", padding=2)
    axes.set_xticks(range(len(SCORES)), ["base classes", "new classes", "harmonic mean"])
    axes.set(ylabel="test accuracy (%)", title="Base-to-new generalisation", ylim=(0, 110))
    axes.legend(ncols=len(labels), loc="upper center")
    figure.savefig(path, dpi=120, format="png")


def main() -> None:
    kinds = (BaseToNewArguments, ModelArguments, PromptArguments, DataArguments, CoOpTrainingArguments)
    run_script(run, *kinds, description=__doc__)


if __name__ == "__main__":
    main()
