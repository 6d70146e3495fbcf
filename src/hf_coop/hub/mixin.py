"""`HubMixin`: the side of `HFCoOp` that reads and writes adapters, on disk and on the Hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import CLIPModel

from ..encoding import base_revision, load_tokenizer
from ..evaluation import nearest_words
from ..files import staged_folder
from ..tuners import PromptConfig
from .adapter_files import CARD_FILE, CONFIG_FILE, fetch_adapter, naming_file, read_adapter_config
from .base_model import check_adapter_config, check_device, load_clip, load_image_processor
from .card_file import write_card
from .convert import read_checkpoint
from .model_card import CardDetails, create_model_card
from .publishing import push_folder

if TYPE_CHECKING:
    from peft import PeftModel as Base
else:
    Base = object

MAX_CARD_VECTORS = 256  # in the card's table of nearest words
HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
PEFT_OPTIONS = (
    *("torch_device", "autocast_adapter_dtype", "ephemeral_gpu_offload", "low_cpu_mem_usage", "key_mapping"),
    *("device_map", "max_memory", "offload_folder", "offload_dir", "offload_index"),
)
MAKING_OPTIONS = ("autocast_adapter_dtype", "low_cpu_mem_usage")  # of a fresh adapter


class HubMixin(Base):
    """Loading, saving, the model card and pushing, in front of [`~peft.PeftModel`]'s own."""

    _card_details: dict[str, CardDetails]
    _given_files: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike[str],
        base_model_name_or_path: str | os.PathLike[str] | CLIPModel | None = None,
        *,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PromptConfig | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **loading: Any,
    ) -> Self:
        """Load a learned prompt with its CLIP and image processor, from a folder or a Hub repository.

        Only safetensors and JSON are read. Everything is checked before CLIP is loaded, and the error names the file
        and the value.

        Args:
            model_id: folder or repository of the adapter.
            base_model_name_or_path: another base model, or a loaded `CLIPModel`, than the one it was trained on.
            adapter_name (`str`): what to call it.
            is_trainable (`bool`): whether to go on training it.
            config ([`PromptConfig`], *optional*): to use instead of the one that is saved with the adapter.
            revision, subfolder, token, cache_dir, local_files_only: of the adapter's files, as in `hf_hub_download`.
                The base model is loaded at the revision that the adapter records.
            dtype (or torch_dtype), device: as in [`HFCoOp.from_clip`].
            loading: `torch_device`, `autocast_adapter_dtype`, `low_cpu_mem_usage`, …, as in
                [`~peft.PeftModel.from_pretrained`].

        Raises:
            TypeError: an option is unknown or of the wrong kind.
            ValueError: a file is missing, damaged or does not fit.
            OSError: the repository or the base model is not found.
        """
        _check_options("from_pretrained", loading, PEFT_OPTIONS)
        if isinstance(model_id, nn.Module):
            raise TypeError("from_pretrained takes the adapter's folder or repository first, then the CLIPModel")
        if config is not None and not isinstance(config, PromptConfig):
            raise TypeError(f"config must be the config of a method, such as CoOpConfig, got {config!r:.80}")
        check_device(device)
        hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        folder = fetch_adapter(model_id, revision=revision, subfolder=subfolder, **hub)
        saved = read_adapter_config(folder)
        config = config or saved
        clip = base_model_name_or_path
        if not isinstance(clip, nn.Module):
            own = config if config.base_model_name_or_path else saved
            path = clip or own.base_model_name_or_path
            revision = None if clip else own.revision
            clip = load_clip(path, revision=revision, dtype=dtype or torch_dtype, adapter=str(model_id), **hub)
        with naming_file(os.path.join(folder, CONFIG_FILE)):
            tokenizer = check_adapter_config(config, clip, **hub)
        clip = clip.to(device or clip.device)
        with naming_file(folder):
            model = super().from_pretrained(
                clip, folder, adapter_name, is_trainable, config, _fill_adapter=True, **loading
            )
        model.card_details = CardDetails.from_card(os.path.join(folder, CARD_FILE))
        if tokenizer is not None:
            model.tokenizer = tokenizer
        with suppress(ValueError, OSError):  # asked for again when an image comes
            model.image_processor = load_image_processor(config, clip, **hub)
        return model

    @classmethod
    def from_published(
        cls,
        checkpoint: str | os.PathLike[str],
        model: str | os.PathLike[str] | CLIPModel,
        classnames: Sequence[str],
        *,
        method: str | None = None,
        class_token_position: str = "end",
        **hub: Any,
    ) -> Self:
        """Load a checkpoint that the published code of CoOp, CoCoOp or another method wrote.

        Nothing that it names is imported or run.

        Args:
            checkpoint, classnames, method, class_token_position: as in `hub.convert.read_checkpoint`.
            model: the CLIP that it was trained with: a repository, a folder or a loaded `CLIPModel`.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, as in [`HFCoOp.from_clip`].

        Raises:
            ValueError: the file is no such checkpoint, or does not fit the model or the class names.
            OSError: the file or the model is not found.
        """
        clip = model if isinstance(model, nn.Module) else load_clip(model, **hub)
        published = read_checkpoint(
            checkpoint, clip, classnames, method=method, class_token_position=class_token_position
        )
        published.config.revision = base_revision(clip) or hub.get("revision")
        prompted = cls(clip, published.config)
        prompted.clip.text_model.active_learner.load_state_dict(published.learned)
        prompted.card_details = CardDetails(training={"Converted from": "a checkpoint of the published code"})
        return prompted.eval()

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
            TypeError: there is no such option.
            ValueError: the name is in use, the adapter is of another method than the model's, or a file is missing,
                damaged or does not fit; the model is then as it was.
            OSError: the repository is not found.
        """
        if kwargs.pop("_fill_adapter", False):  # PEFT's from_pretrained asks for the weights of the adapter it made
            return super().load_adapter(model_id, adapter_name, is_trainable, **kwargs)
        _check_options("load_adapter", kwargs, (*HUB_OPTIONS, *PEFT_OPTIONS))
        if adapter_name in self.peft_config:
            raise ValueError(
                f"adapter name {adapter_name!r:.80} is in use: choose another, or delete_adapter it first"
            )
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = fetch_adapter(model_id, **hub)
        config = read_adapter_config(folder)
        config.inference_mode = not is_trainable
        making = {name: kwargs[name] for name in MAKING_OPTIONS if name in kwargs}
        try:
            with naming_file(os.path.join(folder, CONFIG_FILE)):
                check_adapter_config(config, self.clip)
                self.add_adapter(adapter_name, config, **making)  # PEFT would read the config again, unchecked
            if is_trainable:
                self.set_requires_grad(adapter_name)
            with naming_file(folder):
                result = super().load_adapter(folder, adapter_name, is_trainable, **kwargs)
        except ValueError:
            if adapter_name in self.peft_config:
                self.delete_adapter(adapter_name)
            raise
        self._card_details[adapter_name] = CardDetails.from_card(os.path.join(folder, CARD_FILE))
        self._update_labels()
        return result

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer, or the one that was set."""
        return self._given_files.get("tokenizer") or self._loaded_tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._given_files["tokenizer"] = tokenizer

    @property
    def image_processor(self) -> Any:
        """The base model's image processor, or the one that was set."""
        return self._given_files.get("image_processor") or self._loaded_image_processor

    @image_processor.setter
    def image_processor(self, image_processor: Any) -> None:
        self._given_files["image_processor"] = image_processor

    @cached_property
    def _loaded_tokenizer(self) -> Any:
        return load_tokenizer(self.clip, self.prompt_config.tokenizer_name_or_path)

    @cached_property
    def _loaded_image_processor(self) -> Any:
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

        The figures of the card go into the sub-folder `figures`. A `README.md` that is there keeps what people wrote;
        the part that hf-coop wrote and nobody changed is renewed.

        Args:
            save_directory: the folder; made if needed.
            kwargs: as in [`~peft.PeftModel.save_pretrained`].

        Raises:
            ValueError: `safe_serialization=False`, or there is no adapter.
            OSError: a file cannot be written.
        """
        if not kwargs.get("safe_serialization", True):
            raise ValueError(
                "safe_serialization=False: adapters are written as safetensors only, since pickled weights can run "
                "code and are not read; leave the option out"
            )
        self.active_peft_config  # noqa: B018 - says clearly that there is none
        with staged_folder(save_directory) as staging:
            if (card := Path(save_directory, CARD_FILE)).is_file():
                shutil.copyfile(card, Path(staging, CARD_FILE))
            super().save_pretrained(staging, **{"save_embedding_layers": False, **kwargs})

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Write the model card into `output_dir`, or renew its part of the one there (called by `save_pretrained`)."""
        try:
            words = nearest_words(self.clip, self.tokenizer, max_vectors=MAX_CARD_VECTORS)
        except ValueError:  # no tokenizer
            words = None
        details = self.card_details
        if details.figures is not None:
            details.figures.write(Path(output_dir))
        write_card(create_model_card(self.prompt_config, details, words), Path(output_dir, CARD_FILE))

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


def _check_options(function: str, given: dict[str, Any], known: Sequence[str]) -> None:
    if unknown := sorted(given.keys() - set(known)):
        raise TypeError(f"{function}() takes no {', '.join(unknown)}; its options are {', '.join(known)}")
