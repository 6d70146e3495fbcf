"""Adapters on disk and on the Hub: their files, base model, model card, and conversion of published checkpoints."""

from .adapter_files import fetch_adapter, read_adapter_config
from .base_model import check_device, load_clip, load_image_processor
from .description import describe_adapter
from .mixin import HubMixin
from .model_card import METRICS, CardDetails
from .publishing import check_push, push_file, push_folder

__all__ = [
    "METRICS",
    "CardDetails",
    "HubMixin",
    "check_device",
    "check_push",
    "describe_adapter",
    "fetch_adapter",
    "load_clip",
    "load_image_processor",
    "push_file",
    "push_folder",
    "read_adapter_config",
]
