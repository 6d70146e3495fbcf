"""Real tiny models and images: `parity/` holds a CLIP of 3 text layers with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_trees.make_trees import make_trees
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

PARITY = Path(__file__).parent / "parity"
CLASSNAMES = ["cat", "Tiger_Cat", "bird of paradise", "boeing 737-800", "pink primrose"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--crafted", type=int, default=36, help="How many crafted files tests/hub opens.")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def clip() -> CLIPModel:
    """A fresh tiny CLIP, in evaluation mode."""
    return CLIPModel.from_pretrained(PARITY)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(PARITY)


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Four RGB images of different sizes."""
    pixels = np.random.default_rng(0)
    sizes = [(32, 32), (40, 32), (50, 61), (8, 8)]
    return [Image.fromarray(pixels.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniature copies of the papers' 15 image sets; read only."""
    return make_trees(tmp_path_factory.mktemp("trees"), seed=0)


@pytest.fixture(scope="session")
def pixel_values() -> torch.Tensor:
    """A batch of four preprocessed images."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache of `datasets` for the tests and the processes they start."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder
