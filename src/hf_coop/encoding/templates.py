"""Hand-written prompts, "a photo of a {}.": their class embeddings, as CLIP itself makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import CLIPModel

from .prompts import PromptLayout, TokenizedClassnames, clean_classname
from .text_encoder import encode_prompts

DEFAULT_TEMPLATE = "a photo of a {}."
PROMPTS_AT_A_TIME = 1024


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
    """Class embeddings from hand-written templates; several make an ensemble (CLIP, arXiv 2103.00020, section 3.1.4).

    `w_k = normalise(mean over templates t of normalise(text(t, k)))`, one template after the other, what its prompts
    share encoded once. In the model's own precision even where autocast is on, since nothing of it is computed more
    than once.

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
    layouts = [_layout(clip, tokenizer, classnames, template) for template in templates]
    tower = getattr(clip.text_model, "base_layer", clip.text_model)
    no_context = torch.zeros(1, 0, tower.config.hidden_size, device=clip.device)
    total = torch.zeros(len(classnames), clip.config.projection_dim, device=clip.device)
    with torch.autocast(clip.device.type, enabled=False):
        for layout in layouts:
            pooled = encode_prompts(tower, layout, no_context, PROMPTS_AT_A_TIME)[0]
            total += F.normalize(clip.text_projection(pooled).float(), dim=-1)
    return F.normalize(total, dim=-1)


def _layout(clip: CLIPModel, tokenizer: Any, classnames: Sequence[str], template: str) -> PromptLayout:
    """The prompts of one template, each up to the first end token, where CLIP pools."""
    prompts = [template.replace("{}", clean_classname(name)) for name in classnames]
    ids = tokenizer(prompts)["input_ids"]
    layout = PromptLayout.build(TokenizedClassnames([row[: row.index(row[-1]) + 1] for row in ids], []), n_ctx=0)
    room = clip.config.text_config.max_position_embeddings
    if layout.longest > room:
        raise ValueError(
            f"the hand-written prompt {prompts[layout.order[-1]]!r:.200} takes {layout.longest} tokens, but the text "
            f"tower has {room} positions: shorten the template or the class name"
        )
    return layout
