"""`PredictionMixin`: `HFCoOp.predict`, from whatever stands for images to the names of their classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import CLIPModel

from .data.images import convert_image, image_column, is_one_image, rows_of
from .data.pixels import fit_each, fit_image, stack_pixels
from .encoding.image_encoder import encode_pixels

if TYPE_CHECKING:
    from peft import PeftModel as Base
else:
    Base = object

# A process forked from one that has computed hangs at its first parallel operation, because OpenMP's threads are not
# forked with it. So the workers of `dataset.map(…, num_proc=2)` compute on one thread each, as PyTorch's own do.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

Prediction = list[dict[str, Any]]


class PredictionMixin(Base):
    """Classifying images with the active prompt, in front of [`~peft.PeftModel`]."""

    if TYPE_CHECKING:  # what [`HFCoOp`] has
        clip: CLIPModel
        image_processor: Any

        @property
        def classnames(self) -> list[str]: ...

    def predict(self, images: Any, top_k: int = 5, batch_size: int = 64) -> Any:
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

        Returns:
            One list for one image; a list of lists for several. Where nobody knows how many there will be (a
            generator, a streamed data set), an iterator of lists, which takes `batch_size` images, gives their
            predictions, and only then takes more.

        Raises:
            TypeError, ValueError: an option is no whole number from 1, a data set has no column of images, or
                something is no image or cannot be read; it is named. An iterator raises the latter when it comes to
                that image.
        """
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"{name} must be a whole number, got {value!r:.80}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if hasattr(images, "column_names"):
            images = image_column(images)
        if is_one_image(images):
            fitted = convert_image(images, partial(fit_image, self.image_processor))
            return self.predict_fitted([fitted], top_k)[0]
        predictions = self._predict_each(images, top_k, batch_size)
        if not isinstance(images, Sized):
            return predictions
        hidden = len(images) <= batch_size or None  # None: shown on a terminal alone
        return list(tqdm(predictions, desc="Predicting", total=len(images), disable=hidden))

    def _predict_each(self, images: Iterable[Any], top_k: int, batch_size: int) -> Iterator[Prediction]:
        fitted = fit_each(self.image_processor, rows_of(images))
        while batch := list(islice(fitted, batch_size)):
            yield from self.predict_fitted(batch, top_k)

    @torch.no_grad()
    def predict_fitted(self, images: Sequence[Any], top_k: int) -> list[Prediction]:
        """Predictions of images from [`~hf_coop.data.pixels.fit_image`], all in one batch.

        Names and logits are of the same moment, and the model's mode is as before.
        """
        pixels = stack_pixels(self.image_processor, images)
        was_training, names = self.training, self.classnames
        self.eval()
        try:
            embeds = encode_pixels(self.clip, pixels.to(self.clip.device, self.clip.dtype))
            logits = self(image_embeds=embeds).logits
        finally:
            self.train(was_training)
        if not logits.isfinite().all():
            base = f"{self.clip.name_or_path!r:.200}"
            raise ValueError(f"the scores are not finite: the weights or the image processor of {base} are damaged")
        scores, labels = logits.softmax(-1).topk(min(top_k, len(names)))
        return [
            [{"label": names[k], "score": score} for k, score in zip(*row, strict=True)]
            for row in zip(labels.tolist(), scores.tolist(), strict=True)
        ]
