"""The cache of image features on this machine: where it is, how large, and emptying it."""

from __future__ import annotations

import shutil
from pathlib import Path

CACHE_FOLDER = "hf_coop_features"


def feature_cache() -> Path:
    """The folder of the image features, in the cache of `datasets`; there is none before the first is kept."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / CACHE_FOLDER


def cached_features() -> list[Path]:
    """The files in it: one for each set of images, tower and kind of view."""
    return sorted(path for path in feature_cache().glob("*.arrow") if path.is_file())


def clear_feature_cache() -> int:
    """Delete it; gives the bytes that it took. Features are computed again when they are wanted."""
    size = sum(path.stat().st_size for path in feature_cache().rglob("*") if path.is_file())
    if feature_cache().exists():
        shutil.rmtree(feature_cache())
    return size
