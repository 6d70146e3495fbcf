"""The model card: fills `model_card_template.md` with what is known of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .tuners.coop import PromptConfig


def template_path() -> Path:
    """`model_card_template.md`: inside the installed package, or at the root of the repository it is developed in."""
    installed = Path(__file__).parent / "model_card_template.md"
    return installed if installed.exists() else Path(__file__).parents[2] / "model_card_template.md"


def create_model_card(config: PromptConfig, **kwargs: Any) -> ModelCard:
    """The card of an adapter with this config."""
    method = str(config.peft_type).lower()
    data = ModelCardData(
        library_name="peft",
        base_model=config.base_model_name_or_path,
        base_model_relation="adapter",
        pipeline_tag="zero-shot-image-classification",
        tags=["hf-coop", method, "clip", "prompt-learning", "few-shot"],
    )
    return ModelCard.from_template(data, template_path=str(template_path()), config=config, method=method)
