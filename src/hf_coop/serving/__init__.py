"""Learned prompts put to work."""

from .classify_files import classify_files, find_images
from .evaluate_adapter import evaluate_adapter, metrics_table
from .explain import explain, name_of
from .export import check_export, export_model
from .outputs import csv_header, csv_line, json_line
from .sorting import NO_CLASS, PhotoSorter, check_sortable

__all__ = [
    "NO_CLASS",
    "PhotoSorter",
    "check_export",
    "check_sortable",
    "classify_files",
    "csv_header",
    "csv_line",
    "evaluate_adapter",
    "explain",
    "export_model",
    "find_images",
    "json_line",
    "metrics_table",
    "name_of",
]
