"""`PredictionMixin`: `HFCoOp.predict`, from whatever stands for images to the names of their classes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from itertools import islice
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import CLIPModel

from .data.images import convert_image, image_column, is_one_image, rows_of
from .data.pixels import fit_each, fit_image, stack_pixels
from .encoding.image_encoder import encode_pixels
from .errors import check_counts
from .hub import CardDetails

if TYPE_CHECKING:
    from peft import PeftModel as Base
else:
    Base = object

# A process forked from one that has computed hangs at its first parallel operation, because OpenMP's threads are not
# forked with it. So the workers of `dataset.map(…, num_proc=2)` compute on one thread each, as PyTorch's own do.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

Prediction = list[dict[str, Any]]

AUTO = "auto"  # the min_score that the adapter's card says


class PredictionMixin(Base):
    """Classifying images with the active prompt, in front of [`~peft.PeftModel`]."""

    if TYPE_CHECKING:  # what [`HFCoOp`] has
        clip: CLIPModel
        image_processor: Any
        prompt_layer: Any
        _card_details: dict[str, CardDetails]
        logits_and_losses: Any

    def predict(
        self,
        images: Any,
        top_k: int = 5,
        batch_size: int = 64,
        *,
        min_score: float | str | None = None,
        adapter_name: str | None = None,
    ) -> Any:
        """Classify images, `[{"label", "score"}, …]` with the highest score first.

        Arrays have their channels last, `(H, W)` or `(H, W, C)`, tensors have them first, `(H, W)` or `(C, H, W)`,
        whatever their sizes; both hold whole numbers from 0 to 255 or floats from 0 to 1. Each image is shrunk to what
        the tower takes before the next one is read.

        Processes that are forked (`dataset.map(lambda rows: {"prediction": model.predict(rows["image"])},
        batched=True, num_proc=2)`) compute on one thread each.

        Args:
            images: one image, as [`~hf_coop.data.load_image`] takes it: a PIL image, a path, a URL, an open file or
                its bytes, an array or a tensor. Or several: a list, an array `(B, H, W, C)`, a tensor `(B, C, H, W)`,
                a column of `datasets`, a `Dataset` with a column `image` or a single column of images, or anything
                that gives one image after the other, such as a generator or a streamed data set.
            top_k (`int`): how many classes to give, at most K.
            batch_size (`int`): images through the image tower at a time.
            min_score (`float`, *optional*): leave out classes with a lower score, from 0 to 1. An image whose list is
                then empty is of none of these. "auto": the score that 95 % of the validation images reached, where
                training had any (`card_details.min_score`).
            adapter_name (`str`, *optional*): of which adapter, active or not. Default: the active one. Threads that
                want different adapters of one model each name theirs, since `set_adapter` is for all of them.

        Returns:
            One list for one image; a list of lists for several. Where nobody knows how many there will be (a
            generator, a streamed data set), an iterator of lists, which takes `batch_size` images, gives their
            predictions, and only then takes more.

        Raises:
            TypeError, ValueError: an option is out of its range, there is no such adapter, a data set has no column
                of images, or something is no image or cannot be read; it is named. An iterator raises the latter when
                it comes to that image.
        """
        check_counts(top_k=top_k, batch_size=batch_size)
        if adapter_name is not None:
            self.prompt_layer.learner_of(adapter_name)  # there is one
        self._lowest_score(min_score, adapter_name)  # it is one
        options = (top_k, min_score, adapter_name)
        if hasattr(images, "column_names"):
            images = image_column(images)
        if is_one_image(images):
            fitted = convert_image(images, partial(fit_image, self.image_processor))
            return self.predict_fitted([fitted], *options)[0]
        predictions = self._predict_each(images, batch_size, *options)
        if not isinstance(images, Sized):
            return predictions
        hidden = len(images) <= batch_size or None  # None: shown on a terminal alone
        return list(tqdm(predictions, desc="Predicting", total=len(images), disable=hidden))

    def _lowest_score(self, min_score: float | str | None, adapter_name: str | None) -> float:
        """`min_score` as a number."""
        if min_score == AUTO:
            details = self._card_details.get(adapter_name or self.active_adapter, CardDetails())
            if details.min_score is None:
                raise ValueError(
                    "min_score='auto' is a score found on validation images, and this prompt was trained without any "
                    "or has other class names now: give a number"
                )
            return details.min_score
        if min_score is not None and (not isinstance(min_score, Real) or isinstance(min_score, bool)):
            raise TypeError(f"min_score must be a number from 0 to 1, or {AUTO!r}, got {min_score!r:.80}")
        if min_score is not None and not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be from 0 to 1, or {AUTO!r}, got {min_score}")
        return float(min_score or 0)

    def _predict_each(self, images: Iterable[Any], batch_size: int, *options: Any) -> Iterator[Prediction]:
        fitted = fit_each(self.image_processor, rows_of(images))
        while batch := list(islice(fitted, batch_size)):
            yield from self.predict_fitted(batch, *options)

    @torch.no_grad()
    def predict_fitted(
        self,
        images: Sequence[Any],
        top_k: int,
        min_score: float | str | None = None,
        adapter_name: str | None = None,
    ) -> list[Prediction]:
        """Predictions of images from [`~hf_coop.data.pixels.fit_image`], all in one batch; options as in [`predict`].

        Names and logits are of one adapter, and the model's mode is as before.
        """
        lowest = self._lowest_score(min_score, adapter_name)
        pixels, layer = stack_pixels(self.image_processor, images), self.prompt_layer
        learner = layer.active_learner if adapter_name is None else layer.learner_of(adapter_name)
        names = learner.config.classnames
        with evaluation_mode(self.clip):
            embeds = encode_pixels(self.clip, pixels.to(self.clip.device, self.clip.dtype))
            logits, _ = self.logits_and_losses(image_embeds=embeds, learner=learner)
        if not logits.isfinite().all():
            base = f"{self.clip.name_or_path!r:.200}"
            raise ValueError(f"the scores are not finite: the weights or the image processor of {base} are damaged")
        scores, labels = logits.softmax(-1).topk(min(top_k, len(names)))
        return [
            [{"label": names[k], "score": score} for k, score in zip(*row, strict=True) if score >= lowest]
            for row in zip(labels.tolist(), scores.tolist(), strict=True)
        ]


_lock = threading.Lock()
_in_evaluation: dict[int, list[Any]] = {}  # by the model's id: how many threads are inside, and what was in training


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, for any number of threads; the last one out puts it back into its former mode."""
    with _lock:
        inside = _in_evaluation.setdefault(id(model), [0, [m for m in model.modules() if m.training]])
        inside[0] += 1
        for module in inside[1]:
            module.training = False
    try:
        yield
    finally:
        with _lock:
            inside[0] -= 1
            if not inside[0]:
                del _in_evaluation[id(model)]
                for module in inside[1]:
                    module.training = True
