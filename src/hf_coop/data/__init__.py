"""Few-shot data: sampling, folders and Hub data sets, the papers' benchmarks, images."""

from .benchmarks import benchmark_states, hand_crafted_template, load_benchmark
from .classnames import class_label, classnames_of, match_classes, read_classnames
from .crops import random_view
from .dataset_images import drop_broken_images, read_images
from .downloads import download_benchmark
from .evaluation_sets import load_test_images
from .feature_cache import cached_features, clear_feature_cache, feature_cache
from .few_shot import CLASS_SUBSETS, few_shot_indices, few_shot_splits, subsample_classes
from .folders import load_image_folder
from .images import load_image, load_images
from .sources import load_image_splits

__all__ = [
    "CLASS_SUBSETS",
    "benchmark_states",
    "cached_features",
    "class_label",
    "classnames_of",
    "clear_feature_cache",
    "download_benchmark",
    "drop_broken_images",
    "feature_cache",
    "few_shot_indices",
    "few_shot_splits",
    "hand_crafted_template",
    "load_benchmark",
    "load_image",
    "load_image_folder",
    "load_image_splits",
    "load_images",
    "load_test_images",
    "match_classes",
    "random_view",
    "read_classnames",
    "read_images",
    "subsample_classes",
]
