"""`OnnxClassifier`: a prompt that was exported to ONNX, run by onnxruntime. Nothing here needs PyTorch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Real
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import convert_image, is_one_image, rows_of
from ..data.pixels import fit_each, fit_image
from ..errors import check_counts
from ..escaping import one_line

NEEDS_ONNX = "ONNX models need onnxruntime: pip install 'hf-coop[onnx]'"
MAX_RESIZED_PIXELS = 2**26
Prediction = list[dict[str, Any]]


@dataclass(frozen=True)
class Preprocessing:
    """What CLIP's image processor does by Pillow: resize, crop the centre, scale, subtract the mean, divide by std.

    Args:
        config (`Mapping`): of the processor, as `preprocessor_config.json` has it.

    Raises:
        ValueError: it asks for something else.
    """

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            self.resized(1, 1)
            self.crop_size(1, 1)
            self.normalise(np.zeros((1, 1, 3), np.uint8))
            self.config["resample"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the image processor {dict(self.config)} is not of CLIP's kind: {error!r}") from error

    def __call__(self, images: Any, return_tensors: str = "np") -> SimpleNamespace:
        """As image processors are called: one RGB image or several to `pixel_values` `(B, 3, H, W)`, NumPy's fp32.

        Raises:
            ValueError: one side of an image is too many times the other.
        """
        images = [images] if isinstance(images, Image.Image) else images
        return SimpleNamespace(
            pixel_values=np.stack([self.normalise(np.asarray(self.fit(image))) for image in images])
        )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing."""
        if not self.config.get("do_resize"):
            return width, height
        size = self.config["size"]
        if "shortest_edge" not in size or size.get("longest_edge"):
            return size["width"], size["height"]
        short = size["shortest_edge"]
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)

    def crop_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the crop."""
        if not self.config.get("do_center_crop"):
            return width, height
        return self.config["crop_size"]["width"], self.config["crop_size"]["height"]

    def fit(self, image: Image.Image) -> Image.Image:
        """The image resized and cropped; black where it does not fill the crop."""
        width, height = self.resized(*image.size)
        if width * height > MAX_RESIZED_PIXELS:
            raise ValueError(f"its {image.width} x {image.height} pixels are no picture: cut it")
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling(self.config["resample"]))
        columns, rows = self.crop_size(width, height)
        left, top = (width - columns) // 2, (height - rows) // 2
        return image.crop((left, top, left + columns, top + rows))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """`(H, W, 3)` whole numbers to `(3, H, W)`."""
        values = pixels.astype(np.float32)
        if self.config.get("do_rescale"):
            values = (pixels.astype(np.float64) * self.config["rescale_factor"]).astype(np.float32)
        if self.config.get("do_normalize"):
            mean, std = (np.array(self.config[name], np.float32) for name in ("image_mean", "image_std"))
            values = (values - mean) / std
        return values.transpose(2, 0, 1)


class OnnxClassifier:
    """A model that `hf-coop export` wrote: `predict` as [`~hf_coop.HFCoOp`] has it, by onnxruntime.

    Args:
        path: of the `.onnx` file.
        session_options (`onnxruntime.SessionOptions`, *optional*): such as how many threads to use.

    Attributes:
        classnames (`list[str]`): in label order.
        image_processor ([`Preprocessing`]): images to what the model takes.
        session (`onnxruntime.InferenceSession`): from `pixel_values` `(B, 3, H, W)` to `logits` `(B, K)`.

    Raises:
        ImportError: onnxruntime is not installed.
        OSError: there is no such file.
        ValueError: it is no ONNX model, or none that `hf-coop export` wrote.
    """

    def __init__(self, path: str | os.PathLike[str], session_options: Any = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(NEEDS_ONNX) from error
        shown = repr(os.fspath(path))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no such file: {shown}")
        try:
            self.session = onnxruntime.InferenceSession(
                os.fspath(path), session_options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has errors of its own for each way to fail
            raise ValueError(f"cannot read {shown} as an ONNX model: {one_line(str(error))}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            self.classnames: list[str] = json.loads(metadata["classnames"])
            self.image_processor = Preprocessing(json.loads(metadata["preprocessing"]))
        except (KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"{shown} was not written by `hf-coop export`: {error!r} in its metadata") from error
        (logits,) = self.session.get_outputs()
        if logits.shape[1:] != [len(self.classnames)] or not all(isinstance(n, str) for n in self.classnames):
            raise ValueError(f"{shown} has logits of shape {logits.shape} for {len(self.classnames)} class names")

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """`(B, 3, H, W)` in fp32 to `(B, K)`."""
        return self.session.run(["logits"], {"pixel_values": pixel_values})[0]

    def predict(self, images: Any, top_k: int = 5, batch_size: int = 64, *, min_score: float | None = None) -> Any:
        """Classify images: `[{"label", "score"}, …]` with the highest score first, or one such list for each image.

        Args:
            images: one image or several, as [`~hf_coop.HFCoOp.predict`] takes them.
            top_k (`int`): how many classes to give, at most K.
            batch_size (`int`): images through the model at a time.
            min_score (`float`, *optional*): leave out classes with a lower score, from 0 to 1.

        Raises:
            TypeError, ValueError: an option is out of its range, or something is no image; it is named.
        """
        check_counts(top_k=top_k, batch_size=batch_size)
        if min_score is not None and not (isinstance(min_score, Real) and 0 <= min_score <= 1):
            raise ValueError(f"min_score must be from 0 to 1 for an ONNX model, got {min_score!r:.80}")
        if is_one_image(images):
            return self.predict_fitted(
                [convert_image(images, partial(fit_image, self.image_processor))], top_k, min_score
            )[0]
        return list(self._predict_each(images, top_k, batch_size, min_score))

    def _predict_each(
        self, images: Iterable[Any], top_k: int, batch_size: int, min_score: float | None
    ) -> Iterator[Prediction]:
        fitted = fit_each(self.image_processor, rows_of(images))
        while batch := list(islice(fitted, batch_size)):
            yield from self.predict_fitted(batch, top_k, min_score)

    def predict_fitted(self, images: Sequence[Any], top_k: int, min_score: float | None = None) -> list[Prediction]:
        """Predictions of images from [`~hf_coop.data.pixels.fit_image`], all in one batch."""
        logits = self.logits(np.stack(images)).astype(np.float64)
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        best = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
        return [
            [{"label": self.classnames[k], "score": float(row[k])} for k in labels if row[k] >= (min_score or 0)]
            for row, labels in zip(scores, best, strict=True)
        ]
