"""`HFCoOp`: a CLIPModel with learned prompts, the model people use."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import CLIPModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS

from .data.images import load_images
from .encoding.prompts import check_classnames
from .evaluation.nearest_words import nearest_words
from .hub.adapter_files import (
    CARD_FILE,
    CONFIG_FILE,
    fetch_adapter,
    naming_file,
    push_folder,
    read_adapter_config,
    staged_folder,
)
from .hub.base_model import base_revision, check_adapter_config, load_clip, load_image_processor, load_tokenizer
from .hub.model_card import CardDetails, create_model_card
from .tuners.coop import CoOpLayer, PromptConfig
from .tuners.coop.layer import tensor_versions

MAX_CARD_VECTORS = 256  # in the card's table of nearest words
SUPPORTED_PEFT_TASKS.setdefault("image-classification", []).append("HFCoOp")  # names that pipelines take


class HFCoOp(PeftModel):
    r"""CLIP with prompts learned from a few images: CoOp (arXiv 2109.01134) or CoCoOp (arXiv 2203.05557).

    Class k of an image x has probability softmax over k of `exp(logit_scale) * cos(image(x), text(prompt_k))`.
    A [`~peft.PeftModel`]: `print_trainable_parameters`, `add_adapter`, `load_adapter`, `set_adapter`,
    `disable_adapter` work as PEFT users expect. Make one by [`HFCoOp.from_clip`] or [`HFCoOp.from_pretrained`].

    Args:
        model (`CLIPModel`): the base model; frozen, and changed in place.
        peft_config ([`CoOpConfig`] or [`CoCoOpConfig`]): what to learn.
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
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self.clip.accepts_loss_kwargs = False  # else transformers.Trainer takes CLIP's **kwargs for num_items_in_batch
        self._embeds_cache: tuple[torch.Tensor, Any, torch.Tensor] | None = None
        self._card_details: dict[str, CardDetails] = {}
        self.config = copy.copy(self.clip.config)
        self._update_labels()

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
            method (`str`): "coop" or "cocoop".
            revision, token, cache_dir, local_files_only: as in `CLIPModel.from_pretrained`.
            dtype (or torch_dtype): of CLIP's weights; fp32 by default. The learned prompt stays in fp32.
            device: where to put the model.
            config: further fields of [`CoOpConfig`] or `CoCoOpConfig`: `n_ctx`, `ctx_init`, ….

        Raises:
            TypeError, ValueError: bad class names or options, before anything is loaded where that can be known.
            OSError: the model is not found.
        """
        peft_config = _config_class(method)(classnames=check_classnames(classnames), **config)
        if not isinstance(model, nn.Module):
            hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            model = load_clip(model, revision=revision, dtype=dtype or torch_dtype, **hub)
        peft_config.revision = base_revision(model) or revision
        return cls(model.to(device or model.device), peft_config)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike[str],
        base_model_name_or_path: str | os.PathLike[str] | CLIPModel | None = None,
        *,
        adapter_name: str = "default",
        is_trainable: bool = False,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> HFCoOp:
        """Load a learned prompt with its CLIP and image processor, from a folder or a Hub repository.

        Only safetensors and JSON are read. Everything is checked before CLIP is loaded, and the error names the file
        and the value.

        Args:
            model_id: folder or repository of the adapter.
            base_model_name_or_path: another base model, or a loaded `CLIPModel`, than the one it was trained on.
            adapter_name (`str`): what to call it.
            is_trainable (`bool`): whether to go on training it.
            revision, subfolder, token, cache_dir, local_files_only: of the adapter's files, as in `hf_hub_download`.
                The base model is loaded at the revision that the adapter records.
            dtype (or torch_dtype), device: as in [`HFCoOp.from_clip`].

        Raises:
            ValueError: a file is missing, damaged or does not fit.
            OSError: the repository or the base model is not found.
        """
        hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        folder = fetch_adapter(model_id, revision=revision, subfolder=subfolder, **hub)
        config = read_adapter_config(folder)
        clip = base_model_name_or_path
        if not isinstance(clip, nn.Module):
            path = clip or config.base_model_name_or_path
            revision = None if clip else config.revision
            clip = load_clip(path, revision=revision, dtype=dtype or torch_dtype, adapter=str(model_id), **hub)
        with naming_file(os.path.join(folder, CONFIG_FILE)):
            tokenizer = check_adapter_config(config, clip, **hub)
        model = super().from_pretrained(clip.to(device or clip.device), folder, adapter_name, is_trainable, config)
        model.card_details = CardDetails.from_card(os.path.join(folder, CARD_FILE))
        if tokenizer is not None:
            model.tokenizer = tokenizer
        with suppress(ValueError, OSError):  # asked for again when an image comes
            model.image_processor = load_image_processor(config, clip, **hub)
        return model

    def load_adapter(
        self, model_id: str | os.PathLike[str], adapter_name: str, is_trainable: bool = False, **kwargs: Any
    ) -> Any:
        """Load one more learned prompt for the same CLIP, with the checks of [`HFCoOp.from_pretrained`].

        Args:
            model_id: folder or repository of the adapter.
            adapter_name (`str`): what to call it; [`set_adapter`] makes it the active one.
            is_trainable (`bool`): whether to go on training it.
            kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, and as in
                [`~peft.PeftModel.load_adapter`].

        Raises:
            ValueError: a file is missing, damaged or does not fit; the model is then as it was.
            OSError: the repository is not found.
        """
        names = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        folder = fetch_adapter(model_id, **hub)
        config, known = read_adapter_config(folder), adapter_name in self.peft_config
        with naming_file(os.path.join(folder, CONFIG_FILE)):
            check_adapter_config(config, self.clip)
        try:
            result = super().load_adapter(folder, adapter_name, is_trainable, **kwargs)
        except ValueError:
            if not known and adapter_name in self.peft_config:
                self.delete_adapter(adapter_name)
            raise
        self._card_details[adapter_name] = CardDetails.from_card(os.path.join(folder, CARD_FILE))
        self._update_labels()
        return result

    def set_adapter(self, adapter_name: str, **kwargs: Any) -> None:
        """Make `adapter_name` the active adapter; class names and labels are then its own."""
        super().set_adapter(adapter_name, **kwargs)
        self._update_labels()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; where it was the active one, PEFT chooses another."""
        super().delete_adapter(adapter_name)
        self._card_details.pop(adapter_name, None)
        if self.peft_config:
            self._update_labels()

    def _update_labels(self) -> None:
        """Keep the labels that `transformers.pipeline` reads in step with the active adapter's class names."""
        self.config.id2label = dict(enumerate(self.classnames))
        self.config.label2id = {name: label for label, name in enumerate(self.classnames)}

    @property
    def clip(self) -> CLIPModel:
        """The base model, adapter layer inside."""
        return self.get_base_model()

    @property
    def prompt_layer(self) -> CoOpLayer:
        """The tuner layer around CLIP's text tower."""
        return self.clip.text_model

    @property
    def prompt_config(self) -> PromptConfig:
        """The active adapter's config."""
        return self.active_peft_config

    @property
    def logit_scale(self) -> torch.Tensor:
        """Log of the inverse softmax temperature: CLIP's, or the active adapter's where it learned one."""
        return getattr(self.prompt_layer.active_learner, "logit_scale", self.clip.logit_scale)

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

        Returns:
            `ImageClassifierOutput` with `logits` of shape `(B, K)`, in fp32, and `loss`.
        """
        if input_ids is not None:
            return super().forward(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        if image_embeds is None:
            if pixel_values is None:
                raise ValueError("give pixel_values or image_embeds")
            if not len(pixel_values):
                raise ValueError(f"the batch has no images: pixel_values has shape {tuple(pixel_values.shape)}")
            image_embeds = self.clip.get_image_features(pixel_values=pixel_values).pooler_output
        images = F.normalize(image_embeds.float(), dim=-1)
        classes = self.class_embeddings(images)  # (K, D) or (B, K, D)
        logits = self.logit_scale.exp() * (images[:, None] @ classes.mT)[:, 0]
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def class_embeddings(self, image_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised class embeddings in fp32, computed once for each state of the prompt unless it is in training.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, D)`): normalised image features, for methods that need them.

        Returns:
            `torch.Tensor` of shape `(K, D)`, or `(B, K, D)` where prompts depend on the image.
        """
        pooled = self.prompt_layer.encode_classes(image_embeds)
        versions = tensor_versions(self.clip.text_projection)
        if self._embeds_cache is not None and self._embeds_cache[0] is pooled and self._embeds_cache[1] == versions:
            return self._embeds_cache[2]
        embeds = F.normalize(self.clip.text_projection(pooled).float(), dim=-1)
        reusable = pooled.ndim == 2 and not embeds.requires_grad
        self._embeds_cache = (pooled, versions, embeds) if reusable else None
        return embeds

    @torch.no_grad()
    def predict(self, images: Any, top_k: int = 5, batch_size: int = 64) -> list[Any]:
        """Classify images, `[{"label", "score"}, …]` with the highest score first.

        Args:
            images: a PIL image, a path, an array `(H, W)` or `(H, W, channels)`, or a list of them.
            top_k (`int`): how many classes to give, at most K.
            batch_size (`int`): images through the image tower at a time.

        Returns:
            One list for one image; a list of lists for a list of images.

        Raises:
            TypeError, ValueError: something is no image, or cannot be read; it is named.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        single = not isinstance(images, (list, tuple))
        results = list(self._predict_batches([images] if single else images, top_k, batch_size))
        return results[0] if single else results

    def _predict_batches(self, images: Sequence[Any], top_k: int, batch_size: int) -> Iterator[list[dict[str, Any]]]:
        was_training = self.training
        self.eval()
        try:
            hidden = len(images) <= batch_size or None  # None: shown on a terminal alone
            for start in tqdm(range(0, len(images), batch_size), desc="Predicting", disable=hidden):
                batch = load_images(images[start : start + batch_size], first=start)
                pixels = self.image_processor(images=batch, return_tensors="pt").pixel_values
                logits = self(pixel_values=pixels.to(self.clip.device, self.clip.dtype)).logits
                scores, labels = logits.softmax(-1).topk(min(top_k, logits.shape[-1]))
                for row in zip(labels.tolist(), scores.tolist(), strict=True):
                    yield [{"label": self.classnames[k], "score": s} for k, s in zip(*row, strict=True)]
        finally:
            self.train(was_training)

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
        old = self.prompt_config
        fields = {
            **old.to_dict(),
            "classnames": check_classnames(classnames),
            "token_ids": None,
            "name_lengths": None,
        }
        new = type(old)(**fields)
        if getattr(old, "class_specific_context", False):
            raise ValueError(
                "class_specific_context=True: each context was learned for its own class, so class names cannot be "
                "changed; train a generic context to use it on other classes"
            )
        new.tokenize(self.tokenizer)
        layout = new.layout()
        layout.check_fits(self.clip.config.text_config.max_position_embeddings, new.classnames)
        old.classnames, old.token_ids, old.name_lengths = new.classnames, new.token_ids, new.name_lengths
        self.prompt_layer.active_learner.layout = layout
        self.card_details = CardDetails(training=self.card_details.training, license=self.card_details.license)
        self._update_labels()

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return load_tokenizer(self.prompt_config, self.clip)

    @cached_property
    def image_processor(self) -> Any:
        """The base model's image processor."""
        return load_image_processor(self.prompt_config, self.clip)

    @property
    def card_details(self) -> CardDetails:
        """What the model card says of the active adapter beyond its config: results, data set, recipe.

        Set it after training; it is read back from the card when an adapter is loaded. Other class names make the
        results void.
        """
        return self._card_details.get(self.active_adapter, CardDetails())

    @card_details.setter
    def card_details(self, details: CardDetails) -> None:
        self._card_details[self.active_adapter] = details

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write `adapter_config.json`, `adapter_model.safetensors` and `README.md`, each whole or not at all.

        Args:
            save_directory: the folder; made if needed.
            kwargs: as in [`~peft.PeftModel.save_pretrained`].
        """
        with staged_folder(save_directory) as staging:
            super().save_pretrained(staging, save_embedding_layers=False, **kwargs)

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Write the model card into `output_dir` (called by `save_pretrained`)."""
        try:
            words = nearest_words(self, max_vectors=MAX_CARD_VECTORS)
        except ValueError:  # no tokenizer
            words = None
        create_model_card(self.prompt_config, self.card_details, words).save(os.path.join(output_dir, CARD_FILE))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload prompt with hf-coop",
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Push the adapters and the model card to the Hub in one commit; where nothing has changed, none is made.

        Args:
            repo_id (`str`): `user/name`; made if needed.
            commit_message, commit_description (`str`): of the commit.
            private (`bool`, *optional*): of a repository that is made; default: public, or as its organisation says.
            token: default: the one of `hf auth login`.
            revision (`str`, *optional*): branch to push to, made if needed. Default: main.
            create_pr (`bool`): open a pull request instead.

        Returns:
            `CommitInfo` of the new or, where nothing has changed, of the last commit.

        Raises:
            OSError: the upload failed; the message says what to do.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            files = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
            return push_folder(
                folder,
                repo_id,
                files,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


def _config_class(method: str) -> type[PromptConfig]:
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(method).upper())
    if config_class is None or not issubclass(config_class, PromptConfig):
        raise ValueError(f"method must be 'coop' or 'cocoop', got {method!r}")
    return config_class
