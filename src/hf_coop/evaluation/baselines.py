"""What learned prompts are compared with: hand-written prompts, ensembles of them, and a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from ..encoding.prompts import clean_classname

if TYPE_CHECKING:
    from ..modeling import HFCoOp

DEFAULT_TEMPLATE = "a photo of a {}."
LINEAR_PROBE_ITERATIONS = 1000


def check_templates(templates: str | Sequence[str]) -> list[str]:
    """The hand-written templates as a list.

    Raises:
        ValueError: no template, or one without `{}`.
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"templates need {{}} where the class name goes, got {templates}")
    return templates


@torch.no_grad()
def template_embeddings(
    model: HFCoOp, templates: str | Sequence[str] = DEFAULT_TEMPLATE, batch_size: int = 256
) -> torch.Tensor:
    """Class embeddings from hand-written templates; several are averaged per class (prompt ensembling).

    Args:
        model ([`HFCoOp`]): its CLIP, tokenizer and class names are used, the learned prompt is not.
        templates: with `{}` where the class name goes: "a photo of a {}, a type of flower."
        batch_size (`int`): prompts through the text tower at a time.

    Returns:
        `torch.Tensor` of shape `(K, D)`, normalised, in fp32.

    Raises:
        ValueError: no template, or one without `{}`.
    """
    templates = check_templates(templates)
    names = [clean_classname(name) for name in model.classnames]
    prompts = [template.replace("{}", name) for template in templates for name in names]
    embeds = []
    for start in range(0, len(prompts), batch_size):
        tokens = model.tokenizer(
            prompts[start : start + batch_size], padding=True, truncation=True, return_tensors="pt"
        )
        embeds.append(model.clip.get_text_features(**tokens.to(model.clip.device)).pooler_output.float())
    each = F.normalize(torch.cat(embeds), dim=-1).unflatten(0, (len(templates), len(names)))
    return F.normalize(each.mean(0), dim=-1)


@torch.no_grad()
def zero_shot_logits(
    model: HFCoOp, image_embeds: torch.Tensor, templates: str | Sequence[str] = DEFAULT_TEMPLATE
) -> torch.Tensor:
    """CLIP's own logits `(N, K)` of image features `(N, D)`, from hand-written prompts.

    Args:
        model, templates: as in [`template_embeddings`].
        image_embeds (`torch.Tensor` of shape `(N, D)`): normalised or not.
    """
    images = F.normalize(image_embeds.float(), dim=-1)
    return model.clip.logit_scale.exp().cpu() * images.cpu() @ template_embeddings(model, templates).mT.cpu()


def linear_probe(
    train_embeds: np.ndarray, train_labels: np.ndarray, test_embeds: np.ndarray, C: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Probabilities `(N, classes)` of a logistic regression on image features, as CLIP's paper compares with.

    Args:
        train_embeds (`np.ndarray` of shape `(n, D)`), train_labels (`np.ndarray` of shape `(n,)`): every class is
            among them.
        test_embeds (`np.ndarray` of shape `(N, D)`).
        C (`float`): inverse strength of the regularisation.
        seed (`int`): of the solver.
    """
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=C, max_iter=LINEAR_PROBE_ITERATIONS, random_state=seed)
    return probe.fit(train_embeds, train_labels).predict_proba(test_embeds)
