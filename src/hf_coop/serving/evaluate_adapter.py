"""A learned prompt on labelled images, beside a hand-written one: what `hf-coop evaluate` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..encoding import DEFAULT_TEMPLATE
from ..hub.model_card import METRICS
from ..training import CoOpTrainingArguments, PromptRun

if TYPE_CHECKING:
    from datasets import Dataset

    from ..modeling import HFCoOp


def evaluate_adapter(
    model: HFCoOp,
    dataset: Dataset,
    zero_shot_template: str = DEFAULT_TEMPLATE,
    *,
    batch_size: int = 128,
    use_cpu: bool = False,
) -> dict[str, Any]:
    """Metrics of the active prompt and of a hand-written one, over the same images.

    Args:
        model ([`HFCoOp`]): moved to the GPU where there is one.
        dataset (`datasets.Dataset`): as [`load_test_images`] gives it, with the model's classes ([`match_classes`]).
        zero_shot_template (`str`): the hand-written prompt, with `{}` where the class name goes.
        batch_size (`int`): images at a time.
        use_cpu (`bool`): leave a GPU alone.

    Returns:
        `zero_shot` and `learned`, each as [`classification_metrics`] gives it, and `zero_shot_template`.

    Raises:
        ValueError: the data set does not fit, an image cannot be read, or the template is wrong.
    """
    run = PromptRun(model, CoOpTrainingArguments(per_device_eval_batch_size=batch_size, use_cpu=use_cpu))
    zero_shot = run.evaluate_zero_shot(dataset, zero_shot_template)
    return {"zero_shot": zero_shot, "learned": run.evaluate(dataset), "zero_shot_template": zero_shot_template}


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """What [`evaluate_adapter`] gives, as lines of text."""
    zero_shot, learned = metrics["zero_shot"], metrics["learned"]
    lines = [f"{'':<28}{'zero-shot':>10}{'learned':>10}"]
    for name, label in METRICS.items():
        kind = "10.4f" if name == "ece" else "10.2%"
        lines.append(f"{label:<28}{zero_shot[name]:{kind}}{learned[name]:{kind}}")
    images, classes = learned["num_samples"], len(learned["per_class_accuracy"])
    return "\n".join([*lines, f"{images} images of {classes} classes; zero-shot: {metrics['zero_shot_template']!r}"])
