"""`PromptShelf`: several learned prompts on one CLIP, beside hand-written ones, for many users at a time."""

from __future__ import annotations

import copy
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPModel

from ..data import classnames_of, few_shot_indices
from ..encoding import DEFAULT_TEMPLATE, check_classnames, check_templates, template_embeddings
from ..encoding.image_encoder import encode_pixels
from ..hub import fetch_adapter, load_clip, read_adapter_config
from ..modeling import HFCoOp
from ..training import CoOpTrainer, CoOpTrainingArguments, learn_prompt
from ..training.recipes import starting_prompt
from ..tuners import PromptConfig, config_class_of

if TYPE_CHECKING:
    from datasets import Dataset

MAX_CLASSNAMES, MAX_NAME_LENGTH = 1_000, 200


class Abandoned(Exception):
    """Raised in the training of somebody who has left."""


class PromptShelf:
    """Learned prompts for one CLIP. Any number of threads may use it, since nothing in it changes.

    Args:
        adapters (`Sequence[str]`): repositories or folders; for one and the same CLIP.
        base_model_name_or_path (`str`, *optional*): another CLIP than the adapters record.
        token, device: as in [`HFCoOp.from_pretrained`].

    Attributes:
        models (`dict[str, HFCoOp]`): by the names that the adapters were given by. They share CLIP's tensors.
        clip (`CLIPModel`): without any prompt.

    Raises:
        ValueError, OSError: there is no adapter, one is of another CLIP, or one cannot be loaded.
    """

    def __init__(
        self,
        adapters: Sequence[str],
        base_model_name_or_path: str | None = None,
        *,
        token: str | None = None,
        device: str | None = None,
    ) -> None:
        configs = {name: read_adapter_config(fetch_adapter(name, token=token)) for name in adapters}
        path, revision = common_base(configs, base_model_name_or_path)
        self.clip = load_clip(path, adapter=adapters[0], revision=revision, token=token)
        if device is not None:
            self.clip = self.clip.to(device)
        self.models = {name: HFCoOp.from_pretrained(name, self._bare_clip(), token=token) for name in configs}
        self._tokenizer_lock = threading.Lock()  # its padding is set and used in two steps

    def _bare_clip(self) -> CLIPModel:
        """CLIP anew, of the same tensors, to put a prompt on."""
        tensors = [*self.clip.parameters(), *self.clip.buffers()]
        return copy.deepcopy(self.clip, {id(tensor): tensor for tensor in tensors})

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """An RGB image as the image tower takes it, `(1, 3, H, W)`."""
        return next(iter(self.models.values())).image_processor(image, return_tensors="pt").pixel_values

    @torch.no_grad()
    def scores(
        self, model: HFCoOp, pixel_values: torch.Tensor, classnames: Sequence[str], template: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities `(B, K)` by a learned prompt, and those by a hand-written one.

        Args:
            model ([`HFCoOp`]): of `models`, or from [`learn`].
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): from [`pixels`].
            classnames (`Sequence[str]`): K names; those of the model or others.
            template (`str`, *optional*): the hand-written prompt. Default: the one that the prompt was compared with.

        Raises:
            ValueError: a name or template is wrong, there are too many, or the prompt is class-specific and the names
                are not its own.
        """
        check_user_classnames(classnames)
        template = template or model.card_details.zero_shot_template or DEFAULT_TEMPLATE
        check_templates(template)
        pixel_values = pixel_values.to(model.clip.device, model.clip.dtype)
        embeds = F.normalize(encode_pixels(model.clip, pixel_values).float(), dim=-1)
        with self._tokenizer_lock:
            learner = model.prompt_layer.active_learner
            if list(classnames) == model.classnames:
                hand_written = model.template_embeddings(template)
            else:
                learner = learner.with_classnames(classnames, model)
                hand_written = template_embeddings(model.clip, model.tokenizer, classnames, template)
        classes = model.project(learner(model.prompt_layer.base_layer, embeds))  # (K, D) or (B, K, D)
        scale = getattr(learner, "logit_scale", model.clip.logit_scale).exp()
        learned = ((scale * embeds)[:, None] @ classes.mT)[:, 0]
        return learned.softmax(-1), (model.clip.logit_scale.exp() * embeds @ hand_written.mT).softmax(-1)

    def learn(self, images: Dataset, num_shots: int = 16, method: str = "coop") -> Iterator[dict[str, Any] | HFCoOp]:
        """Learn a prompt from labelled images by the default recipe, told of as it goes.

        Images beyond `num_shots` of a class are kept to measure on. Closing the iterator stops the training.

        Yields:
            Rows of the trainer's `log_history`; at last the trained [`HFCoOp`].

        Raises:
            ValueError: the images or their class names cannot be learned from.
        """
        check_user_classnames(classnames_of(images))
        told: queue.Queue[dict[str, Any] | HFCoOp | Exception] = queue.Queue()
        left = threading.Event()

        def tell(trainer: CoOpTrainer, row: dict[str, Any]) -> None:
            if left.is_set():
                raise Abandoned
            told.put(row)

        def run() -> None:
            try:
                told.put(self._train(images, num_shots, method, tell))
            except Abandoned:
                pass
            except Exception as error:  # told in the other thread
                told.put(error)

        thread = threading.Thread(target=run, name="hf-coop-learning", daemon=True)
        thread.start()
        try:
            while isinstance(news := told.get(), dict):
                yield news
            if isinstance(news, Exception):
                raise news
            yield news
        finally:
            left.set()

    def _train(self, images: Dataset, num_shots: int, method: str, tell: Any) -> HFCoOp:
        names, labels = classnames_of(images), images["label"][:]
        drawn = few_shot_indices(labels, num_shots, seed=1)
        rest = sorted(set(range(len(labels))) - set(drawn))
        with tempfile.TemporaryDirectory(prefix="hf-coop-") as folder:
            args = CoOpTrainingArguments(
                output_dir=folder,
                overwrite_output_dir=True,
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=self.clip.device.type == "cpu",
            )
            options = starting_prompt(args, config_class_of(method), {})
            model = HFCoOp.from_clip(self._bare_clip(), names, method, **options)
            model.image_processor = next(iter(self.models.values())).image_processor
            splits = {"train": images.select(drawn)} | ({"test": images.select(rest)} if rest else {})
            described: dict[str, Any] = {"dataset_name": "uploaded", "shots": num_shots, "split": None}
            learn_prompt(model, args, splits, DEFAULT_TEMPLATE, callbacks=[tell], **described)
        return model.eval()


def common_base(configs: Mapping[str, PromptConfig], given: str | None = None) -> tuple[str, str | None]:
    """The CLIP that several adapters are for, and its revision.

    Args:
        configs (`Mapping[str, PromptConfig]`): by the adapters' names.
        given (`str`, *optional*): another CLIP, to use for all.

    Raises:
        ValueError: there is no adapter, or they are for different CLIPs, or one does not say for which.
    """
    if not configs:
        raise ValueError("give at least one adapter: a repository on the Hub or a folder")
    bases = {given or config.base_model_name_or_path for config in configs.values()}
    if len(bases) > 1 or None in bases:
        shown = ", ".join(sorted(str(base or "not recorded") for base in bases))
        raise ValueError(
            f"the adapters are for different CLIPs ({shown}): start an app for each of these, or say with "
            "base_model_name_or_path which to use"
        )
    first = next(iter(configs.values()))
    return str(bases.pop()), None if given else first.revision


def check_user_classnames(classnames: Sequence[str]) -> None:
    """Raises ValueError unless these are class names of a size that an app can bear."""
    if len(classnames) > MAX_CLASSNAMES or any(len(name) > MAX_NAME_LENGTH for name in classnames):
        raise ValueError(f"at most {MAX_CLASSNAMES} class names of {MAX_NAME_LENGTH} characters are allowed")
    check_classnames(classnames)
