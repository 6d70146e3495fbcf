"""Hand-written prompts, "a photo of a {}.": their class embeddings, as CLIP itself makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import CLIPModel

from .prompts import clean_classname

DEFAULT_TEMPLATE = "a photo of a {}."
PROMPTS_AT_A_TIME = 256


def check_templates(templates: str | Sequence[str]) -> list[str]:
    """The hand-written templates as a list.

    Raises:
        TypeError: something is no string.
        ValueError: no template, or one without `{}` or with braces of another kind.
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    for template in templates:
        if not isinstance(template, str):
            raise TypeError(f"a template must be a string, got {template!r:.80} of type {type(template).__name__}")
        if "{}" not in template or set("{}") & set(template.replace("{}", "")):
            raise ValueError(
                f"the template {template!r:.200} must have {{}} where the class name goes, and no other braces"
            )
    if not templates:
        raise ValueError("no template given: give at least one, such as 'a photo of a {}.'")
    return templates


@torch.inference_mode(False)  # tensors of inference mode could not be used in training later
@torch.no_grad()
def template_embeddings(
    clip: CLIPModel, tokenizer: Any, classnames: Sequence[str], templates: str | Sequence[str] = DEFAULT_TEMPLATE
) -> torch.Tensor:
    """Class embeddings from hand-written templates; several are averaged per class (prompt ensembling).

    In the model's own precision even where autocast is on, since nothing of it is computed more than once.

    Args:
        clip (`CLIPModel`), tokenizer: any learned prompts in it are not used.
        classnames (`Sequence[str]`): K names.
        templates: with `{}` where the class name goes: "a photo of a {}, a type of flower."

    Returns:
        `torch.Tensor` of shape `(K, D)`, normalised, in fp32, on the device of `clip`.

    Raises:
        TypeError, ValueError: no template, one without `{}`, or a prompt that is too long for the text tower.
    """
    templates = check_templates(templates)
    names = [clean_classname(name) for name in classnames]
    prompts = [template.replace("{}", name) for template in templates for name in names]
    room, embeds = clip.config.text_config.max_position_embeddings, []
    for start in range(0, len(prompts), PROMPTS_AT_A_TIME):
        batch = prompts[start : start + PROMPTS_AT_A_TIME]
        tokens = tokenizer(batch, padding=True, return_tensors="pt").to(clip.device)
        if tokens.input_ids.shape[1] > room:
            longest = batch[int(tokens.attention_mask.sum(1).argmax())]
            raise ValueError(
                f"the hand-written prompt {longest!r:.200} takes {tokens.input_ids.shape[1]} tokens, but the text "
                f"tower has {room} positions: shorten the template or the class name"
            )
        with torch.autocast(clip.device.type, enabled=False):
            embeds.append(clip.get_text_features(**tokens).pooler_output.float())
    each = F.normalize(torch.cat(embeds), dim=-1).unflatten(0, (len(templates), len(names)))
    return F.normalize(each.mean(0), dim=-1)
