"""`PromptLayer`: CLIP's text tower with learned prompts in it, and `PromptLearner`, what a method learns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from ..encoding import PromptLayout, check_classnames, encode_prompts
from ..encoding.frozen_layers import tensor_versions
from .config import PromptConfig

CTX_INIT_STD = 0.02
NO_ADAPTER = (
    "the model has no learned prompt: its last adapter was deleted. Give it another by load_adapter or add_adapter, "
    "and choose it by set_adapter"
)


class PromptLearner(nn.Module):
    """The learned context of one adapter and the layout of its class prompts (CoOp, arXiv 2109.01134, section 3.2).

    A method that learns more, makes its class prompts otherwise or has another objective overrides `forward`,
    `losses` and `merge_gradients`.

    Args:
        config ([`PromptConfig`]): tokenised.
        clip (`CLIPModel`): the model it is for; gives sizes, word embeddings for `ctx_init`, and `logit_scale`.

    Attributes:
        ctx (`nn.Parameter`): `(M, dim)`, or `(K, M, dim)` with class-specific context.
        logit_scale (`nn.Parameter`, *optional*): the log of the learned inverse temperature, with `learn_temperature`.
        layout ([`PromptLayout`]): of the K class prompts.
    """

    def __init__(self, config: PromptConfig, clip: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout()
        words = clip.text_model.embeddings.token_embedding.weight
        self.ctx = nn.Parameter(self.initial_context(config, words.detach()))
        if config.learn_temperature:
            self.learn_temperature(clip)
        self._cache: tuple[Any, torch.Tensor, torch.Tensor] | None = None

    def learn_temperature(self, clip: nn.Module) -> None:
        """From now on learn `logit_scale` too, beginning at that of `clip`."""
        self.config.learn_temperature = True
        self.logit_scale = nn.Parameter(clip.logit_scale.detach().to(self.ctx.dtype, copy=True))
        if isinstance(clip.text_model, PromptLayer):
            clip.text_model.scale_logits_of(clip)

    @staticmethod
    def initial_context(config: PromptConfig, words: torch.Tensor) -> torch.Tensor:
        """Embeddings of the words of `ctx_init`, or a draw from N(0, 0.02²), made on CPU for any device alike."""
        shape = [config.n_ctx, words.shape[1]]
        if config.class_specific_context:
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
            image_embeds: not used here, where prompts do not depend on the image.
        """
        if torch.compiler.is_compiling():  # the tensors of `torch.export` hold no values to keep or to look at
            return self.encode(text_model)
        parameters = chain(self.parameters(), text_model.parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return self.encode(text_model)
        device_type = self.ctx.device.type
        state = (
            self.layout,
            tensor_versions(text_model),
            self.ctx.device,
            self.ctx.dtype,
            torch.is_inference_mode_enabled(),  # its tensors cannot be used in training
            torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type),
        )
        known = self._cache  # read once: other threads may predict at the same time
        if known is None or known[0] != state or not torch.equal(known[1], self.ctx):
            known = self._cache = (state, self.ctx.clone(), self.encode(text_model))
        return known[2]

    def _apply(self, *args: Any, **kwargs: Any) -> PromptLearner:
        """Moved or cast, the tower's tensors may come to lie where others lay that features are kept of."""
        self._cache = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept for speed, so that a copy is the same before and after a prediction."""
        return {**self.__dict__, "_cache": None}

    def encode(self, text_model: nn.Module, layout: PromptLayout | None = None) -> torch.Tensor:
        """Pooled features of the class prompts, or of a part of them (`PromptLayout.select`), in label order."""
        vectors = self.ctx.flatten(0, -2)  # (C, dim)
        return encode_prompts(text_model, layout or self.layout, vectors[None])[0]

    def with_classnames(self, classnames: Sequence[str], model: Any) -> PromptLearner:
        """The same context, in the same tensors, in front of other class names.

        Args:
            classnames (`Sequence[str]`): the other names.
            model ([`HFCoOp`]): gives the tokenizer and the room for tokens.

        Raises:
            TypeError, ValueError: bad names, a name too long, or a class-specific context, which belongs to the
                classes it was learned for.
        """
        names = check_classnames(classnames)
        changed = {"classnames": names, "token_ids": None, "name_lengths": None}
        config = type(self.config)(**{**self.config.to_dict(), **changed})
        if config.class_specific_context:
            raise ValueError(
                "class_specific_context=True: each context was learned for its own class, so class names cannot be "
                "changed; train a generic context to use it on other classes"
            )
        config.tokenize(model.tokenizer)
        renamed = copy.copy(self)
        renamed.config, renamed.layout, renamed._cache = config, config.layout(), None
        renamed.layout.check_fits(model.clip.config.text_config.max_position_embeddings, names)
        return renamed

    def losses(
        self,
        model: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        image_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """What training minimises. Nearly always one loss; several where their gradients are not simply added.

        Args:
            model ([`HFCoOp`]): gives `template_embeddings` and `logit_scale`.
            logits (`torch.Tensor` of shape `(B, K)`), labels (`torch.Tensor` of shape `(B,)`).
            image_embeds (`torch.Tensor` of shape `(B, D)`), class_embeds (`torch.Tensor` of shape `(K, D)`, or
                `(B, K, D)` where prompts depend on the image): normalised.

        Returns:
            Scalars, means over the images; the first is what is shown as the loss.
        """
        return (F.cross_entropy(logits, labels),)

    def merge_gradients(self, *gradients: torch.Tensor) -> torch.Tensor:
        """One parameter's gradient from those of each of `losses`, over the whole batch: their sum."""
        return torch.stack(gradients).sum(0) if len(gradients) > 1 else gradients[0]

    def one_loss(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """A scalar with the value of the first of `losses`, whose gradient is what `merge_gradients` makes of theirs.

        So `loss.backward()` is right for every method, wherever one process sees the whole batch.
        """
        if len(losses) == 1 or not losses[0].requires_grad:
            return losses[0]
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        each = [torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True) for loss in losses]
        merged = [self.merge_gradients(*gradients) for gradients in zip(*each, strict=True)]
        carriers = [(p - p.detach()).mul(g).sum() for p, g in zip(parameters, merged, strict=True)]
        return losses[0].detach() + torch.stack(carriers).sum()


def _apply_learned_temperature(
    clip: CLIPModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> CLIPOutput | None:
    """Forward hook: logits of class prompts at the active adapter's own `logit_scale`, where it has one."""
    layer = clip.text_model
    input_ids = args[0] if args else kwargs.get("input_ids")
    if input_ids is not None or not isinstance(output, CLIPOutput) or layer.disable_adapters:
        return None
    scale = getattr(layer.active_learner, "logit_scale", None)
    if scale is None:
        return None
    output.logits_per_image = output.logits_per_image * (scale - clip.logit_scale).exp()
    output.logits_per_text = output.logits_per_image.t()
    return output


class PromptLayer(nn.Module, BaseTunerLayer):
    """Replaces `CLIPModel.text_model`. With `input_ids` it is the untouched tower; without, it gives class features.

    So the unmodified `CLIPModel.forward(pixel_values=…)` returns `logits_per_image` of shape `(batch, K)`.

    Args:
        base_layer (`CLIPTextModel`): the tower.
        adapter_name (`str`), learner ([`PromptLearner`]): the first adapter.
    """

    adapter_layer_names = ("prompt_learner",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, learner: PromptLearner) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prompt_learner = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.temperature_hook: RemovableHandle | None = None
        self._active_adapter = adapter_name
        self.add_learner(adapter_name, learner)

    def add_learner(self, adapter_name: str, learner: PromptLearner) -> None:
        """Add an adapter."""
        self.prompt_learner[adapter_name] = learner
        self.set_adapter(self.active_adapters, inference_mode=learner.config.inference_mode)

    def scale_logits_of(self, clip: CLIPModel) -> None:
        """See to it that the logits of `clip` are at the active adapter's own temperature, where it has one."""
        if self.temperature_hook is None:
            self.temperature_hook = clip.register_forward_hook(_apply_learned_temperature, with_kwargs=True)

    @property
    def active_learner(self) -> PromptLearner:
        """The prompt learner of the one active adapter.

        Raises:
            ValueError: none is active, or several are.
        """
        if not self.prompt_learner:
            raise ValueError(NO_ADAPTER)
        names = self.active_adapters
        if self.disable_adapters or len(names) != 1:
            active = "they are disabled" if self.disable_adapters else f"active: {names}"
            raise ValueError(f"class prompts come from exactly one learned adapter, but {active}; see set_adapter")
        return self.prompt_learner[names[0]]

    def learner_of(self, adapter_name: str) -> PromptLearner:
        """The prompt learner of an adapter, active or not.

        Raises:
            ValueError: there is no such adapter.
        """
        if adapter_name not in self.prompt_learner:
            raise ValueError(f"there is no adapter {adapter_name!r:.80}; there are {', '.join(self.prompt_learner)}")
        return self.prompt_learner[adapter_name]

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refused, as `unmerge` is.

        Raises:
            ValueError: always.
        """
        raise ValueError("learned prompts cannot be merged into CLIP's weights; use unload() to take them off")

    unmerge = merge

    @torch.compiler.disable
    def encode_classes(
        self, image_embeds: torch.Tensor | None = None, learner: PromptLearner | None = None
    ) -> torch.Tensor:
        """Pooled features of the class prompts of an adapter, by default the active one: `(K, dim)`, or `(B, K, dim)`
        given B images.

        `torch.compile` leaves this as it is, so that features are kept and gradients flow as ever. `torch.export`
        takes it down as it is in inference, without gradients.
        """
        return (learner or self.active_learner)(self.base_layer, image_embeds)

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
