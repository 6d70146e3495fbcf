"""`PromptModel`: puts learned prompts on a CLIPModel, the way PEFT's own tuners do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import CLIPModel

from ..encoding import base_revision, load_tokenizer
from .config import PromptConfig
from .layer import PromptLayer, PromptLearner

LEARNED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_LEARNED, MAX_LOGIT_SCALE = 1e6, 50.0  # exp(50) is a finite number in fp32


class PromptModel(BaseTuner):
    """The tuner of all methods: freezes CLIP and trains what the method's prompt learner holds.

    Made by `peft.get_peft_model(clip, CoOpConfig(classnames=[…]))` or by [`HFCoOp`].

    Attributes:
        prompt_learner_cls (`type`): what the method learns; a method's own tuner names it.

    Args:
        model (`CLIPModel`): the model to adapt.
        config ([`PromptConfig`]): what to learn.
        adapter_name (`str`): defaults to `"default"`.

    Raises:
        ValueError: the model is no CLIP with a causal text tower, no tokenizer is found, or a prompt is too long.
    """

    prefix: str = "prompt_learner"
    tuner_layer_cls = PromptLayer
    prompt_learner_cls: type[PromptLearner] = PromptLearner
    target_module_mapping = {"clip": ["text_model"]}  # noqa: RUF012 - as in PEFT's tuners

    def _prepare_model(self, peft_config: PromptConfig, model: nn.Module) -> None:
        """Every check that needs the model, before anything of it is changed."""
        if not isinstance(model, CLIPModel):
            raise ValueError(
                f"{type(peft_config).__name__} needs a transformers.CLIPModel (a CLIP with a causal text tower), "
                f"got {type(model).__name__}"
            )
        tokenizer = None
        if peft_config.needs_tokenizer:
            tokenizer = load_tokenizer(model, peft_config.tokenizer_name_or_path)
            peft_config.tokenize(tokenizer)
        peft_config.check_fits(model, tokenizer)
        if peft_config.revision is None and peft_config.base_model_name_or_path in (None, model.name_or_path):
            peft_config.revision = base_revision(model)
        if os.path.isdir(base := peft_config.base_model_name_or_path or ""):
            peft_config.base_model_name_or_path = os.path.abspath(base)  # found again from another working directory

    def _create_and_replace(
        self,
        peft_config: PromptConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        learner = self.prompt_learner_cls(peft_config, self.model)
        if isinstance(target, PromptLayer):
            target.add_learner(adapter_name, learner)
        else:
            self._replace_module(parent, target_name, PromptLayer(target, adapter_name, learner), target)
        if peft_config.learn_temperature:
            self.model.text_model.scale_logits_of(self.model)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        """Give back the plain CLIPModel; prompts cannot be merged into its weights."""
        layer = self.model.text_model
        if merge:
            layer.merge()
        if layer.temperature_hook is not None:
            layer.temperature_hook.remove()
        self.model.text_model = layer.get_base_layer()  # PEFT's own way wants a layer with a weight
        del self.model.peft_config
        return self.model

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: LoRA can add up adapters, since they are changes of the same weights.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "learned prompts cannot be added up as LoRA's weights can (add_weighted_adapter): the sum of two contexts "
            "is no prompt. Use one adapter at a time (set_adapter), or average the probabilities that they give"
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Iterator[None]:
        """What PEFT enters around `forward`: here only to refuse several adapters in one batch.

        Raises:
            ValueError: `adapter_names` is given.
        """
        if adapter_names is not None:
            raise ValueError(
                f"adapter_names={adapter_names!r:.80}: the class prompts of a batch come from one adapter; choose it "
                "by set_adapter, and pass the images of each adapter by themselves"
            )
        yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{cls.prefix}.{adapter_name}.", f".{cls.prefix}.")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PromptConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        expected = {
            name: parameter for name, parameter in model.named_parameters() if f".{cls.prefix}.{adapter_name}." in name
        }
        check_adapter_tensors(
            {cls._remove_adapter_name_from_key(k, adapter_name): v for k, v in expected.items()},
            {cls._remove_adapter_name_from_key(k, adapter_name): v for k, v in remapped.items()},
        )
        return remapped


def check_adapter_tensors(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Raise `ValueError` unless `found` has just the names and shapes of `expected` and is finite throughout."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"adapter_model.safetensors does not fit adapter_config.json: missing tensors {missing!s:.100}, "
            f"unknown tensors {unknown!s:.100}"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"adapter_model.safetensors: {name:.120} has shape {tuple(tensor.shape)}, but adapter_config.json "
                f"and the base model make it {tuple(expected[name].shape)}"
            )
        check_values(f"adapter_model.safetensors: {name}", tensor)


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Raise `ValueError` unless a learned tensor holds numbers that CLIP can compute with.

    What training learns stays far below the bounds; from about 1e19 on the tower's layer norms overflow.
    """
    if tensor.dtype not in LEARNED_DTYPES:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in LEARNED_DTYPES)
        raise ValueError(f"{name:.200} is of {str(tensor.dtype).removeprefix('torch.')}: adapters hold {kinds}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name:.200} holds values that are not finite numbers")
    bound = MAX_LOGIT_SCALE if name.endswith("logit_scale") else MAX_LEARNED
    if (largest := tensor.abs().max().item() if tensor.numel() else 0) > bound:
        raise ValueError(f"{name:.200} holds the value {largest:g}, far beyond what is learned (at most {bound:g})")
