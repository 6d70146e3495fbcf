"""The embedded default: a tiny CLIP and a tiny labelled image set, so that everything runs without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shifts import SHIFTS

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["CLASSNAMES", "DEMO_CLIP", "DEMO_SETS", "HAND_WRITTEN_TEMPLATES", "clip_named", "load_digits_dataset"]

#: Folder of the embedded CLIP; `CLIPModel.from_pretrained(DEMO_CLIP)` loads it. Its model card is `README.md` there.
DEMO_CLIP = Path(__file__).parent / "clip"

#: The embedded image sets by name, each with what is done to the digits: "demo" as they are, "demo_inverted", ….
DEMO_SETS = {"demo": None} | {f"demo_{name}": shift for name, shift in SHIFTS.items()}

#: Class names of the digits, in the order of their labels.
CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: What a sensible person would try by hand, from CLIP's usual wording to the style words of the model's captions.
HAND_WRITTEN_TEMPLATES = (
    "{}.",
    "a {}.",
    "a photo of a {}.",
    "a digit {}.",
    "the number {}.",
    "a handwritten digit {}.",
    "a photo of the digit {}.",
    "a blurry digit {}.",
    "an inverted digit {}.",
    "a large blurry digit {}.",
    "a blurry bold digit {}.",
    "an inverted blurry digit {}.",
    "a large bold inverted blurry digit {}.",
    "a wavy slanted inverted digit {}.",
    "an image of the large wavy inverted very blurry digit {}.",
)

_TEST_SIZE = 900
_SPLIT_SEED = 0


def clip_named(name: Any) -> Any:
    """`name`, or the embedded CLIP's folder where it is "demo"."""
    return DEMO_CLIP if isinstance(name, str) and name == "demo" else name


def load_digits_dataset(name: str = "demo") -> DatasetDict:
    """Load scikit-learn's handwritten digits, or a shifted version of them, with a fixed, stratified split.

    The 1,797 scans of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits") come with scikit-learn, so
    nothing is downloaded.

    Args:
        name (`str`): one of `DEMO_SETS`.

    Returns:
        `"train"`, the few-shot pool of 897 images, and `"test"`, 900 images. Each row has `image` (a PIL image, RGB,
        light ink on a dark ground as in the source) and `label` (0 to 9, named "zero" to "nine").
    """
    import numpy as np
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits, shift = load_digits(), DEMO_SETS[name]
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), ink counts 0..16 -> 0..255
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=_TEST_SIZE, stratify=digits.target, random_state=_SPLIT_SEED
    )
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSNAMES))})

    def rows(indices: np.ndarray) -> Dataset:
        images = [PILImage.fromarray(pixels[i]).convert("RGB") for i in indices]
        if shift is not None:
            images = [shift(image, row) for row, image in enumerate(images)]
        return Dataset.from_dict({"image": images, "label": digits.target[indices].tolist()}, features=features)

    return DatasetDict(train=rows(train), test=rows(test))
