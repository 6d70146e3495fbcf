"""Learned prompts put to work."""

from .classify_files import classify_files, find_images

__all__ = ["classify_files", "find_images"]
