"""`CoOpLayer`: CLIP's text tower with learned prompts in it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...encoding.text_encoder import encode_prompts
from .config import PromptConfig

CTX_INIT_STD = 0.02


class PromptLearner(nn.Module):
    """The learned context of one adapter and the layout of its class prompts (CoOp, section 3.2).

    Args:
        config ([`CoOpConfig`]): tokenised.
        clip (`CLIPModel`): the model it is for; gives sizes, word embeddings for `ctx_init`, and `logit_scale`.

    Attributes:
        ctx (`nn.Parameter`): `(M, dim)`, or `(K, M, dim)` with class-specific context.
        logit_scale (`nn.Parameter`, *optional*): the log of the learned inverse temperature, with `learn_temperature`.
        layout ([`PromptLayout`]): of the K class prompts.
    """

    def __init__(self, config: PromptConfig, clip: nn.Module) -> None:
        super().__init__()
        self.layout = config.layout()
        words = clip.text_model.embeddings.token_embedding.weight
        self.ctx = nn.Parameter(self.initial_context(config, words.detach()))
        if config.learn_temperature:
            self.logit_scale = nn.Parameter(clip.logit_scale.detach().float().clone())
        self._cache: tuple[Any, torch.Tensor, torch.Tensor] | None = None

    @staticmethod
    def initial_context(config: PromptConfig, words: torch.Tensor) -> torch.Tensor:
        """Embeddings of the words of `ctx_init`, or a draw from N(0, 0.02²), made on CPU for any device alike."""
        shape = [config.n_ctx, words.shape[1]]
        if getattr(config, "class_specific_context", False):
            shape.insert(0, len(config.classnames))
        if config.ctx_token_ids is not None:
            return words[config.ctx_token_ids].expand(shape).clone()
        return torch.empty(shape).normal_(std=CTX_INIT_STD).to(words)

    def forward(self, text_model: nn.Module, image_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled features `(K, dim)` of the class prompts.

        Computed once for each state of `ctx` and the tower where no gradients are to flow: they are switched off, or
        nothing of the adapter and the tower is trainable.

        Args:
            text_model (`CLIPTextModel`): the tower.
            image_embeds: not used by CoOp, whose prompts do not depend on the image.
        """
        parameters = chain(self.parameters(), text_model.parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return self.encode(text_model)
        device_type = self.ctx.device.type
        state = (
            self.layout,
            tensor_versions(text_model),
            self.ctx.device,
            torch.is_inference_mode_enabled(),  # its tensors cannot be used in training
            torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type),
        )
        if self._cache is None or self._cache[0] != state or not torch.equal(self._cache[1], self.ctx):
            self._cache = (state, self.ctx.clone(), self.encode(text_model))
        return self._cache[2]

    def encode(self, text_model: nn.Module) -> torch.Tensor:
        vectors = self.ctx.flatten(0, -2)  # (C, dim)
        return encode_prompts(text_model, self.layout, vectors[None])[0]


def tensor_versions(module: nn.Module) -> list[tuple[int, Any]]:
    """What changes when a parameter of `module` is replaced or written to; always new for those of inference mode."""
    return [(x.data_ptr(), object() if x.is_inference() else x._version) for x in module.parameters()]


class CoOpLayer(nn.Module, BaseTunerLayer):
    """Replaces `CLIPModel.text_model`. With `input_ids` it is the untouched tower; without, it gives class features.

    So the unmodified `CLIPModel.forward(pixel_values=…)` returns `logits_per_image` of shape `(batch, K)`.

    Args:
        base_layer (`CLIPTextModel`): the tower.
        adapter_name (`str`), config ([`CoOpConfig`]): the first adapter.
        clip (`CLIPModel`): the model that `base_layer` belongs to.
    """

    adapter_layer_names = ("prompt_learner",)
    prompt_learner_cls = PromptLearner

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PromptConfig, clip: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prompt_learner = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, clip)

    def update_layer(self, adapter_name: str, config: PromptConfig, clip: nn.Module) -> None:
        """Add an adapter, on the tower's device."""
        learner = self.prompt_learner_cls(config, clip)
        self.prompt_learner[adapter_name] = learner
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def active_learner(self) -> PromptLearner:
        """The prompt learner of the one active adapter.

        Raises:
            ValueError: none is active, or several are.
        """
        if self.disable_adapters or len(self.active_adapters) != 1:
            active = "they are disabled" if self.disable_adapters else f"active: {self.active_adapters}"
            raise ValueError(f"class prompts come from exactly one learned adapter, but {active}; see set_adapter")
        return self.prompt_learner[self.active_adapters[0]]

    def encode_classes(self, image_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled features of the active adapter's class prompts: `(K, dim)`, or `(B, K, dim)` given B images."""
        return self.active_learner(self.base_layer, image_embeds)

    def forward(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> BaseModelOutputWithPooling:
        if input_ids is not None or self.disable_adapters:
            return self.base_layer(input_ids=input_ids, **kwargs)
        return BaseModelOutputWithPooling(pooler_output=self.encode_classes())

    def __getattr__(self, name: str) -> Any:
        """What the tower has, this layer has: `config`, `embeddings`, `dtype` …"""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)
