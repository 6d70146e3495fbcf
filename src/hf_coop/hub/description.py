"""What an adapter is, from its files alone: what `hf-coop info` shows."""

from __future__ import annotations

import math
import os
from typing import Any

from safetensors import safe_open

from ..data.few_shot import describe_shots
from ..tuners import PromptConfig
from ..tuners.config import own_options
from .adapter_files import CARD_FILE, WEIGHTS_FILE, fetch_adapter, read_adapter_config
from .model_card import CardDetails


def describe_adapter(model_id: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """Method, base model, context, size, what its card says was measured, and classes, each as a line of text.

    Args:
        model_id, hub: as in `fetch_adapter`.

    Raises:
        ValueError, OSError: as `fetch_adapter` and `read_adapter_config`.
    """
    folder = fetch_adapter(model_id, **hub)
    config = read_adapter_config(folder)
    card = CardDetails.from_card(os.path.join(folder, CARD_FILE))
    weights = os.path.join(folder, WEIGHTS_FILE)
    with safe_open(weights, framework="pt") as file:
        values = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    facts = {
        "method": config.label,
        "base model": _base_model(config),
        "context vectors": config.n_ctx,
        "started from": config.ctx_init,
        "class name": f"at the {config.class_token_position}",
        "class-specific": "yes" if config.class_specific_context else "no",
        "temperature": "learned" if config.learn_temperature else "CLIP's",
        "template": config.template or None,
        **own_options(config),
        "parameters": f"{values:,} ({os.path.getsize(weights):,} bytes)",
        "written by": f"hf-coop {config.hf_coop_version}",
        "learned from": describe_shots(card.shots, card.train_images, len(config.classnames)) or None,
        "accuracy": _accuracy(card),
        "none of these": f"below a score of {card.min_score}" if card.min_score else None,
        "classes": f"{len(config.classnames)}: {', '.join(config.classnames)}",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _base_model(config: PromptConfig) -> str:
    base = config.base_model_name_or_path
    if not base:
        return "not recorded"
    if os.path.isabs(base):
        where = "of this machine" if os.path.isdir(base) else "that is not on this machine"
        return f"{base} (a folder {where})"
    return f"{base} at {config.revision}" if config.revision else os.fspath(base)


def _accuracy(card: CardDetails) -> str | None:
    """The card's accuracy, as its author measured it."""
    if "accuracy" not in card.learned:
        return None
    beside = f", zero-shot {card.zero_shot['accuracy']:.2%}" if "accuracy" in card.zero_shot else ""
    images = " of ".join(filter(None, (card.split, card.dataset_name or card.dataset_id)))
    return f"{card.learned['accuracy']:.2%}{beside}{f' (on {images})' if images else ''}"
