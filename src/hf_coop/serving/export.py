"""A learned prompt with its image tower as one file: an ONNX model or a `torch.export` program."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ..files import naming_place, staged_file
from ..modeling import HFCoOp
from ..version import __version__
from .onnx_classifier import OnnxClassifier, Preprocessing

LOGITS_TOLERANCE = 1e-4
INT8_TOLERANCE = 0.1  # of the logits' spread over the classes of an image
PIXELS_TOLERANCE = 1e-5
MAX_ONNX_BYTES = 2**31 - 2**20  # what one protobuf file can hold
EXAMPLE_SIZES = ((256, 256), (640, 480), (333, 500), (40, 30), (224, 224))


class ImageClassifier(nn.Module):
    """The image tower, and one product with the scaled class embeddings.

    Args:
        model ([`HFCoOp`]): whose class prompts do not depend on the image. It is copied, in fp32.
    """

    def __init__(self, model: HFCoOp) -> None:
        super().__init__()
        self.vision_model = copy.deepcopy(model.clip.vision_model).float()
        self.visual_projection = copy.deepcopy(model.clip.visual_projection).float()
        classes = model.logit_scale.exp().float() * model.class_embeddings()
        self.class_weights = nn.Parameter(classes.detach().clone())  # (K, D)
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, H, W)` to logits `(B, K)`."""
        features = self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)
        return F.normalize(features, dim=-1) @ self.class_weights.T


def check_export(path: Path, int8: bool = False) -> None:
    """Whether [`export_model`] can write such a file, before a model is loaded.

    Raises:
        ImportError, ValueError: as there.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"the file's name must end in .onnx or .pt2 (a torch.export program), got {str(path)!r}")
    if path.suffix == ".onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise ImportError("writing ONNX models needs onnx, onnxscript and onnxruntime: pip install 'hf-coop[onnx]'")
    if int8 and path.suffix != ".onnx":
        raise ValueError("int8 weights are for ONNX models: give a name that ends in .onnx")


@torch.no_grad()
def export_model(model: HFCoOp, path: str | os.PathLike[str], int8: bool = False) -> Path:
    """Write image tower and class embeddings as one file, from `pixel_values` `(B, 3, H, W)` to `logits` `(B, K)`.

    The batch size stays open. Class names and preprocessing are in the file: in the ONNX model's metadata, and in the
    `extra_files` `classnames` and `preprocessing` of the program, both as JSON. Before the file is kept, it is run and
    compared with the model on a few images: logits to 1e-4, and the same labels.

    Args:
        model ([`HFCoOp`]): on any device, in any precision; the file computes in fp32.
        path: ends in `.onnx`, or in `.pt2` for a `torch.export` program.
        int8 (`bool`): hold the tower's matrices in 8 bits, by which the logits move a little; ONNX alone.

    Returns:
        The path.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: the ending is another, the prompts depend on the image, the image processor is not of CLIP's kind,
            the model is too large for one file, or what was written does not compute what the model does.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_export(path, int8)
    write = _write_onnx if path.suffix == ".onnx" else _write_program
    if model.prompt_config.depends_on_image:
        raise ValueError(
            f"{model.prompt_config.label} makes class prompts for each image: the file would have to hold the text "
            "tower too and run it for every image and class, and torch.export can write that for one batch size only. "
            "Export a prompt of another method, or serve this one with PyTorch (docs/serving.md)"
        )
    classifier = ImageClassifier(model)
    preprocessing = Preprocessing(json.loads(model.image_processor.to_json_string()))
    images = _example_images()
    pixels = torch.from_numpy(preprocessing(images).pixel_values)
    _check_preprocessing(model.image_processor, images, pixels)
    metadata = {
        "classnames": json.dumps(model.classnames),
        "preprocessing": json.dumps(preprocessing.config),
        "base_model": model.prompt_config.base_model_name_or_path or "",
        "hf_coop_version": __version__,
    }
    expected = classifier(pixels)
    with naming_place(path), staged_file(path) as aside:
        run = write(classifier, pixels[:2], metadata, aside, int8)
        _compare(expected, torch.cat([run(pixels), run(pixels[:1])]), int8)
    return path


def _write_onnx(
    classifier: ImageClassifier, pixels: torch.Tensor, metadata: dict[str, str], path: Path, int8: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    n_bytes = sum(parameter.numel() * 4 for parameter in classifier.parameters())
    if n_bytes > MAX_ONNX_BYTES:
        raise ValueError(f"the image tower has {n_bytes / 2**30:.1f} GiB, but one ONNX file holds 2: export a .pt2")
    with _quiet():
        program = torch.onnx.export(
            classifier,
            (pixels,),
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(metadata)
        program.save(path)
        if int8:
            whole = path.with_stem(f"{path.stem}-fp32")
            path.rename(whole)
            quantize_dynamic(whole, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    loaded = OnnxClassifier(path)
    return lambda pixels: torch.from_numpy(loaded.logits(pixels.numpy()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, of which a user could mend none."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write_program(
    classifier: ImageClassifier, pixels: torch.Tensor, metadata: dict[str, str], path: Path, int8: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    program = torch.export.export(
        classifier, (pixels,), dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}}
    )
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=metadata)
    path.write_bytes(content.getbuffer())  # not by torch, which ends the process where the disk is full
    return torch.export.load(path).module()


def _example_images() -> list[Image.Image]:
    """Coloured blots of several sizes: what an image tower can tell apart, unlike noise."""
    random = np.random.default_rng(0)
    blots = [Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8)) for _ in EXAMPLE_SIZES]
    return [blot.resize(size, Image.Resampling.BICUBIC) for blot, size in zip(blots, EXAMPLE_SIZES, strict=True)]


def _check_preprocessing(processor: Any, images: list[Image.Image], pixels: torch.Tensor) -> None:
    """Raises ValueError where the processor does something that [`Preprocessing`] does not."""
    expected = processor(images=images, return_tensors="pt").pixel_values
    rounding = 2 / 255 / min(processor.image_std) if getattr(processor, "backend", "pil") == "torchvision" else 0
    if expected.shape != pixels.shape or (expected - pixels).abs().max() > PIXELS_TOLERANCE + rounding:
        raise ValueError(
            f"the image processor {type(processor).__name__} does not resize, crop and normalise as CLIP's does, so "
            "the exported model could not be given the same pixels"
        )


def _compare(expected: torch.Tensor, found: torch.Tensor, int8: bool) -> None:
    """Raises ValueError unless the file's logits are the model's; the first image is there once more, on its own."""
    expected = torch.cat([expected, expected[:1]])
    allowed, relative = LOGITS_TOLERANCE, 1e-5
    if int8:
        allowed, relative = INT8_TOLERANCE * float(expected.max(-1).values.sub(expected.min(-1).values).max()), 0
    difference = (found - expected).abs().max().item()
    lost = expected.max(-1).values - expected.gather(1, found.argmax(-1, keepdim=True))[:, 0]  # of another label
    close = ((found - expected).abs() <= allowed + relative * expected.abs()).all()
    if not close or lost.max() > allowed:
        raise ValueError(
            f"the exported model's logits differ from PyTorch's by up to {difference:.2g} (allowed: {allowed:.2g}) or "
            "name other classes; nothing was written"
        )
