"""A learned prompt beside the hand-written one on test images: what `hf-coop explain` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from ..data import classnames_of
from ..data.dataset_images import read_images
from ..data.features import encode_images
from ..demo import DEMO_CLIP
from ..encoding import DEFAULT_TEMPLATE, check_templates
from ..errors import some
from ..evaluation import nearest_words
from ..evaluation.report import Explanation, render_report
from ..files import staged_folder

if TYPE_CHECKING:
    from datasets import Dataset

    from ..modeling import HFCoOp

IMAGES_AT_A_TIME = 64
REPORT = "report.html"


def explain(
    model: HFCoOp,
    dataset: Dataset,
    output_dir: str | os.PathLike[str],
    template: str = DEFAULT_TEMPLATE,
    facts: dict[str, str] | None = None,
) -> Path:
    """Write `report.html`: figures, images and words that show what the prompt learned, in one file.

    Args:
        model ([`HFCoOp`]): with the learned prompt.
        dataset (`datasets.Dataset`): test images with columns `image` and `label`. Those of classes that the prompt
            does not have are left out, which the page says.
        output_dir: where the page goes.
        template (`str`): the hand-written prompt to compare with.
        facts (`dict[str, str]`, *optional*): what else the page says on top.

    Returns:
        The path of the page.

    Raises:
        ValueError: no class of the images is one of the prompt's, or an image cannot be read.
        OSError: the page cannot be written.
    """
    check_templates(template)
    rows, labels = match_labels(dataset, model.classnames)
    left_out = len(dataset) - len(rows)
    dataset = dataset.select(rows)
    explanation = compare_prompts(model, dataset, labels, template)
    explanation.facts |= facts or {}
    if left_out:
        explanation.notes.append(f"{left_out} images of other classes than the prompt's are left out.")
    shown = [*explanation.put(True), *explanation.put(False)]
    images = dict(zip(shown, read_images(dataset, shown), strict=True)) if shown else {}
    page = render_report(explanation, images)
    with staged_folder(output_dir) as folder:
        Path(folder, REPORT).write_text(page, encoding="utf-8")
    return Path(output_dir, REPORT)


def match_labels(dataset: Dataset, classnames: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """The rows whose class the prompt has, and their labels as the prompt counts them.

    Raises:
        ValueError: there are none.
    """
    names = classnames_of(dataset)
    if names == list(classnames):
        return list(range(len(dataset))), np.asarray(dataset["label"][:])
    number = {name: k for k, name in reversed(list(enumerate(classnames)))}  # the first of equal names
    found = {row: number[names[k]] for row, k in enumerate(dataset["label"][:]) if names[k] in number}
    if not found:
        raise ValueError(
            f"the images have none of the prompt's classes: the data set has {some(names)}, the prompt "
            f"{some(classnames)}"
        )
    return list(found), np.asarray(list(found.values()))


@torch.no_grad()
def compare_prompts(model: HFCoOp, dataset: Dataset, labels: np.ndarray, template: str) -> Explanation:
    """Both prompts on test images.

    Args:
        model ([`HFCoOp`]): with the learned prompt.
        dataset (`datasets.Dataset`): with a column `image`.
        labels (`np.ndarray` of shape `(N,)`): the images' classes, as the prompt counts them.
        template (`str`): the hand-written prompt.
    """
    config, names = model.prompt_config, model.classnames
    images = F.normalize(encode_images(model, dataset)[:, 0].to(model.clip.device), dim=-1)
    parts = images.split(IMAGES_AT_A_TIME)
    logits = torch.cat([model(image_embeds=part).logits for part in parts])
    notes = []
    if config.depends_on_image:
        learned = sum(model.class_embeddings(part).sum(0) for part in parts)
        learned = F.normalize(learned, dim=-1)
        notes.append("The learned class embeddings depend on the image: the figures show their mean over the images.")
    else:
        learned = model.class_embeddings()
    written, scores = model.template_embeddings(template), model.zero_shot_logits(images, template)
    explanation = Explanation(
        title=f"What a {config.label} prompt learned: {len(names)} {'class' if len(names) == 1 else 'classes'}",
        facts={"base model": name_of(config.base_model_name_or_path), "test images": str(len(labels))},
        classnames=names,
        template=template,
        labels=labels,
        image_embeds=images.cpu().numpy(),
        class_embeds=(written.cpu().numpy(), learned.cpu().numpy()),
        probabilities=tuple(x.float().softmax(-1).cpu().numpy() for x in (scores, logits)),
        notes=notes,
    )
    own = explanation.changed_most() if config.class_specific_context else None
    rows = nearest_words(model.clip, model.tokenizer, top_k=5, classes=own)
    keys = [None] if own is None else own
    size = len(rows) // len(keys)
    explanation.words = {key: rows[i * size : (i + 1) * size] for i, key in enumerate(keys)}
    return explanation


def name_of(place: str | os.PathLike[str] | None) -> str:
    """A model, prompt or data set by name; of a folder its last part, since a page may be shown to others."""
    if place is None:
        return "not known"
    if os.path.exists(place):
        return "the embedded CLIP" if Path(place) == DEMO_CLIP else Path(place).resolve().name
    return os.fspath(place)
