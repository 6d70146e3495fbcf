"""Learned prompts put to work."""

from .classify_files import classify_files, find_images
from .explain import explain, name_of

__all__ = ["classify_files", "explain", "find_images", "name_of"]
