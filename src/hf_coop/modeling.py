"""`HFCoOp`: a CLIPModel with learned prompts, the model people use."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS
from transformers.utils import can_return_tuple

from .encoding import DEFAULT_TEMPLATE, base_revision, check_classnames, template_embeddings
from .errors import some
from .escaping import one_line
from .hub import CardDetails, HubMixin, check_device, load_clip
from .prediction import PredictionMixin
from .tuners import PromptConfig, config_class_of
from .tuners.layer import NO_ADAPTER, PromptLayer, PromptLearner, tensor_versions

IMAGE_TOWER_OPTIONS = ("interpolate_pos_encoding", "output_attentions", "output_hidden_states")  # of forward

SUPPORTED_PEFT_TASKS.setdefault("image-classification", []).append("HFCoOp")  # names that pipelines take


class HFCoOp(PredictionMixin, HubMixin, PeftModel):
    r"""CLIP with prompts learned from a few images, by CoOp (arXiv 2109.01134) or another of the methods.

    Class k of an image x has probability softmax over k of `exp(logit_scale) * cos(image(x), text(prompt_k))`.
    A [`~peft.PeftModel`]: `print_trainable_parameters`, `add_adapter`, `load_adapter`, `set_adapter`,
    `disable_adapter` work as PEFT users expect. Make one by [`HFCoOp.from_clip`] or [`HFCoOp.from_pretrained`].

    Args:
        model (`CLIPModel`): the base model; frozen, and changed in place.
        peft_config ([`PromptConfig`]): what to learn; its class says by which method.
        adapter_name (`str`): defaults to `"default"`.
        kwargs: as in [`~peft.PeftModel`].

    Raises:
        ValueError: the model is no CLIP with a causal text tower, or the config does not fit it.
    """

    def __init__(
        self, model: CLIPModel, peft_config: PromptConfig, adapter_name: str = "default", **kwargs: Any
    ) -> None:
        if peft_config.base_model_name_or_path is None:
            peft_config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
        with warnings.catch_warnings():  # PEFT reads what transformers has just renamed
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            super().__init__(model, peft_config, adapter_name, **kwargs)
        self.clip.accepts_loss_kwargs = False  # else transformers.Trainer takes CLIP's **kwargs for num_items_in_batch
        self._embeds_cache: tuple[torch.Tensor, Any, torch.Tensor] | None = None
        self._template_cache: tuple[Any, torch.Tensor] | None = None
        self._card_details: dict[str, CardDetails] = {}
        self._given_files = {}
        self.config = copy.copy(self.clip.config)
        self._update_labels()
        self.train(self.clip.training)

    @classmethod
    def from_clip(
        cls,
        model: str | os.PathLike[str] | CLIPModel,
        classnames: Sequence[str],
        method: str = "coop",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **config: Any,
    ) -> HFCoOp:
        """A fresh prompt for `classnames` on a CLIP.

        Args:
            model: a repository ("openai/clip-vit-base-patch16"), a folder, or a loaded `CLIPModel`.
            classnames (`Sequence[str]`): one name a class, in label order.
            method (`str`): "coop", "cocoop", …: the label of a config class in lower case.
            revision, token, cache_dir, local_files_only: as in `CLIPModel.from_pretrained`.
            dtype (or torch_dtype): of CLIP's weights; fp32 by default. The learned prompt stays in fp32.
            device: where to put the model.
            config: further fields of the method's config, such as [`CoOpConfig`]: `n_ctx`, `ctx_init`, ….

        Raises:
            TypeError, ValueError: bad class names, options or device, before anything is loaded where it can be known.
            OSError: the model is not found.
        """
        peft_config = config_class_of(method)(classnames=check_classnames(classnames), **config)
        check_device(device)
        if not isinstance(model, nn.Module):
            hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            model = load_clip(model, revision=revision, dtype=dtype or torch_dtype, **hub)
        peft_config.revision = base_revision(model) or revision
        return cls(model.to(device or model.device), peft_config)

    def add_adapter(self, adapter_name: str, peft_config: PromptConfig, **kwargs: Any) -> None:
        """Add a fresh prompt beside the others; [`set_adapter`] makes it the active one.

        Raises:
            ValueError: the name is in use, or the config is of another method than the model's.
        """
        if peft_config.peft_type != self.peft_type:
            raise ValueError(
                f"adapter {adapter_name!r} is {getattr(peft_config, 'label', peft_config.peft_type)}, those of this "
                f"model are {config_class_of(self.peft_type.value).label}: a model holds adapters of one method; "
                "load the other one on a CLIP of its own"
            )
        super().add_adapter(adapter_name, peft_config, **kwargs)

    def set_adapter(self, adapter_name: str, **kwargs: Any) -> None:
        """Make `adapter_name` the active adapter; class names and labels are then its own."""
        if not isinstance(adapter_name, str):
            raise TypeError(f"class prompts come from one adapter: give one name, got {adapter_name!r:.80}")
        super().set_adapter(adapter_name, **kwargs)
        self._update_labels()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; where it was the active one, PEFT chooses another."""
        super().delete_adapter(adapter_name)
        self._card_details.pop(adapter_name, None)
        if self.peft_config:
            self._update_labels()

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Without learned prompts: inside, only texts (`input_ids`) can be encoded."""
        self.active_peft_config  # noqa: B018 - says clearly that there is none
        with super().disable_adapter():
            yield

    @property
    def active_peft_config(self) -> PromptConfig:
        """The active adapter's config.

        Raises:
            ValueError: there is no adapter any more.
        """
        if not self.peft_config:
            raise ValueError(NO_ADAPTER)
        return super().active_peft_config

    def __repr__(self) -> str:
        """What it is, in a few lines; `print(model.clip)` shows the modules."""
        if not self.peft_config:
            return f"HFCoOp(no adapter, base={self.clip.name_or_path!r})"
        config = self.prompt_config
        lines = {
            "method": config.label,
            "classes": f"{len(config.classnames)}: {some(config.classnames)}",
            "context": f"{config.n_ctx} vectors{' for each class' if config.class_specific_context else ''}",
            "base": config.base_model_name_or_path or "not recorded",
            "device": f"{self.clip.device}, {self.clip.dtype}",
        }
        if len(self.peft_config) > 1:
            lines["adapters"] = f"{', '.join(self.peft_config)}; active: {self.active_adapter}"
        return "\n".join(["HFCoOp(", *(f"  {name:<9}{one_line(value)}" for name, value in lines.items()), ")"])

    def get_base_model(self) -> CLIPModel:
        """The base model, adapter layer inside."""
        return self.base_model.model

    def _update_labels(self) -> None:
        """Keep the labels that `transformers.pipeline` reads in step with the active adapter's class names."""
        self.config.id2label = dict(enumerate(self.classnames))
        self.config.label2id = {}
        for label, name in self.config.id2label.items():
            self.config.label2id.setdefault(name, label)  # the first of equal names

    @property
    def clip(self) -> CLIPModel:
        """The base model, adapter layer inside."""
        return self.get_base_model()

    @property
    def prompt_layer(self) -> PromptLayer:
        """The tuner layer around CLIP's text tower."""
        return self.clip.text_model

    @property
    def prompt_config(self) -> PromptConfig:
        """The active adapter's config."""
        return self.active_peft_config

    @property
    def logit_scale(self) -> torch.Tensor:
        """Log of the inverse softmax temperature: CLIP's, or the active adapter's where it learned one."""
        return self._logit_scale_of(self.prompt_layer.active_learner)

    def _logit_scale_of(self, learner: PromptLearner) -> torch.Tensor:
        return getattr(learner, "logit_scale", self.clip.logit_scale)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Classify images; with `input_ids`, CLIP's own forward on those texts instead (a `CLIPOutput`).

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): from the image processor; or
            image_embeds (`torch.Tensor` of shape `(B, D)`): projected image features, normalised or not.
            labels (`torch.Tensor` of shape `(B,)`, *optional*): class indices, for the cross-entropy loss.
            kwargs: `interpolate_pos_encoding`, `output_hidden_states`, `output_attentions`, for the image tower;
                `return_dict`; with `input_ids`, all that CLIP's own forward takes.

        Returns:
            `ImageClassifierOutput` with `logits` of shape `(B, K)`, in fp32, and `loss`; its `hidden_states` and
            `attentions` are the image tower's. With `return_dict=False` the same as a tuple.

        Raises:
            TypeError: there is no such keyword.
            ValueError: no images, or not exactly one active adapter.
        """
        if input_ids is not None:
            return super().forward(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        if unknown := kwargs.keys() - IMAGE_TOWER_OPTIONS:
            raise TypeError(
                f"forward() takes no {', '.join(sorted(unknown))}: without input_ids it takes pixel_values, "
                f"image_embeds, labels, return_dict, {', '.join(IMAGE_TOWER_OPTIONS)}"
            )
        learner, vision = self.prompt_layer.active_learner, None
        if image_embeds is None:
            vision = self._encode_images(pixel_values, **kwargs)
            image_embeds = vision.pooler_output
        logits, losses = self.logits_and_losses(None, image_embeds, labels, learner=learner)
        return ImageClassifierOutput(
            loss=learner.one_loss(losses) if losses else None,
            logits=logits,
            hidden_states=vision and vision.hidden_states,
            attentions=vision and vision.attentions,
        )

    def _encode_images(self, pixel_values: torch.Tensor | None, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The image tower's output, with projected embeddings `(B, D)` as its `pooler_output`."""
        if pixel_values is None:
            raise ValueError("give pixel_values or image_embeds")
        if pixel_values.shape[0] == 0:  # `len` would fix the batch size in `torch.export`
            raise ValueError(f"the batch has no images: pixel_values has shape {tuple(pixel_values.shape)}")
        return self.clip.get_image_features(pixel_values=pixel_values, **kwargs)

    @torch.compiler.disable  # inductor's backward pass can be run once, but several losses go back through the logits
    def logits_and_losses(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        class_embeds: torch.Tensor | None = None,
        learner: PromptLearner | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Logits `(B, K)` in fp32, and the method's losses (`PromptLearner.losses`; none without labels).

        For a training loop that merges the gradients of several losses itself, after adding up those of all batches
        and processes; [`forward`] merges those of its own batch.

        Args:
            pixel_values, image_embeds, labels: as in [`forward`].
            class_embeds (`torch.Tensor` of shape `(K, D)`, *optional*): default: those of [`class_embeddings`].
            learner ([`PromptLearner`], *optional*): of which adapter. Default: the active one.
        """
        learner = learner or self.prompt_layer.active_learner
        if image_embeds is None:
            image_embeds = self._encode_images(pixel_values).pooler_output
        images = F.normalize(image_embeds.float(), dim=-1)
        classes = self.class_embeddings(images, learner) if class_embeds is None else class_embeds  # (K, D), (B, K, D)
        logits = ((self._logit_scale_of(learner).exp() * images)[:, None] @ classes.mT)[:, 0]
        losses = () if labels is None else learner.losses(self, logits, labels, images, classes)
        return logits, losses

    @torch.compiler.disable
    def class_embeddings(
        self, image_embeds: torch.Tensor | None = None, learner: PromptLearner | None = None
    ) -> torch.Tensor:
        """Normalised class embeddings in fp32, computed once for each state of the prompt unless it is in training.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, D)`): normalised image features, for methods that need them.
            learner ([`PromptLearner`], *optional*): of which adapter. Default: the active one.

        Returns:
            `torch.Tensor` of shape `(K, D)`, or `(B, K, D)` where prompts depend on the image.
        """
        pooled = self.prompt_layer.encode_classes(image_embeds, learner)
        if torch.compiler.is_compiling():  # `torch.export`, whose tensors hold no values
            return self.project(pooled)
        versions, known = tensor_versions(self.clip.text_projection), self._embeds_cache
        if known is not None and known[0] is pooled and known[1] == versions:
            return known[2]
        embeds = self.project(pooled)
        reusable = pooled.ndim == 2 and not embeds.requires_grad
        self._embeds_cache = (pooled, versions, embeds) if reusable else None
        return embeds

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled features of the text tower `(…, dim)` to normalised embeddings `(…, D)`, in fp32."""
        return F.normalize(self.clip.text_projection(pooled).float(), dim=-1)

    def template_embeddings(self, templates: str | Sequence[str] = DEFAULT_TEMPLATE) -> torch.Tensor:
        """Class embeddings `(K, D)` of hand-written prompts instead, normalised. Those asked for last are kept.

        Args:
            templates: with `{}` where the class name goes: "a photo of a {}, a type of flower."; several make an
                ensemble.

        Raises:
            TypeError, ValueError: no template, one without `{}`, a prompt that is too long for the text tower, or no
                tokenizer to be found.
        """
        try:
            tokenizer = self.tokenizer
        except ValueError as error:
            raise ValueError(
                f"the template {templates!r:.200} must be encoded, which needs a tokenizer: {error}. On a model that "
                "is loaded already, set model.prompt_config.tokenizer_name_or_path"
            ) from error
        tower = [self.prompt_layer.base_layer, self.clip.text_projection]
        key = templates, tuple(self.classnames), [tensor_versions(module) for module in tower], self.clip.device
        known = self._template_cache
        if known is None or known[0] != key:
            embeds = template_embeddings(self.clip, tokenizer, self.classnames, templates)
            known = self._template_cache = (key, embeds)
        return known[1]

    @torch.no_grad()
    def zero_shot_logits(
        self, image_embeds: torch.Tensor, templates: str | Sequence[str] = DEFAULT_TEMPLATE
    ) -> torch.Tensor:
        """CLIP's own logits `(B, K)`, from hand-written prompts.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, D)`): normalised or not.
            templates: as in [`template_embeddings`].
        """
        classes = self.template_embeddings(templates)
        images = F.normalize(image_embeds.to(classes), dim=-1)
        return self.clip.logit_scale.exp().float() * images @ classes.mT

    @property
    def classnames(self) -> list[str]:
        """The active adapter's class names, in label order."""
        return list(self.prompt_config.classnames)

    def set_classnames(self, classnames: Sequence[str]) -> None:
        """Put the learned context in front of other class names, for classes it has not seen.

        Raises:
            TypeError, ValueError: bad names, a name too long, or a class-specific context, which belongs to the
                classes it was learned for. The model is then as it was.
        """
        old, learner = self.prompt_config, self.prompt_layer.active_learner
        renamed = learner.with_classnames(classnames, self)
        new = renamed.config
        old.classnames, old.token_ids, old.name_lengths = new.classnames, new.token_ids, new.name_lengths
        learner.layout = renamed.layout
        self.card_details = CardDetails(training=self.card_details.training, license=self.card_details.license)
        self._update_labels()

    def _apply(self, *args: Any, **kwargs: Any) -> HFCoOp:
        """Moved or cast, the model's tensors may come to lie where others lay that embeddings are kept of."""
        self._embeds_cache = self._template_cache = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept for speed, so that a copy is the same before and after a prediction."""
        kept = {name: value for name, value in self.__dict__.items() if not name.startswith("_loaded_")}
        return {**kept, "_embeds_cache": None, "_template_cache": None}
