"""A learned prompt beside the hand-written one on test images: what `hf-coop explain` does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from ..data import match_classes
from ..data.dataset_images import read_images
from ..data.features import encode_images
from ..demo import DEMO_CLIP
from ..encoding import DEFAULT_TEMPLATE, check_templates
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
        dataset (`datasets.Dataset`): test images with columns `image` and `label`, matched by [`match_classes`]. The
            page says how many are left out because the prompt does not have their classes.
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
    every, dataset = len(dataset), match_classes(dataset, model.classnames)
    explanation = compare_prompts(model, dataset, template)
    explanation.facts |= facts or {}
    if left_out := every - len(dataset):
        explanation.notes.append(f"{left_out} images of other classes than the prompt's are left out.")
    shown = [*explanation.put(True), *explanation.put(False)]
    images = dict(zip(shown, read_images(dataset, shown), strict=True)) if shown else {}
    page = render_report(explanation, images)
    with staged_folder(output_dir) as folder:
        Path(folder, REPORT).write_text(page, encoding="utf-8")
    return Path(output_dir, REPORT)


@torch.no_grad()
def compare_prompts(model: HFCoOp, dataset: Dataset, template: str) -> Explanation:
    """Both prompts on test images.

    Args:
        model ([`HFCoOp`]): with the learned prompt.
        dataset (`datasets.Dataset`): with columns `image` and `label`, the latter as the prompt counts classes.
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
        facts={"base model": name_of(config.base_model_name_or_path), "test images": str(len(dataset))},
        classnames=names,
        template=template,
        labels=np.asarray(dataset["label"][:]),
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
