"""Class names to class features: the token layout of prompts, and the text tower that encodes a shared prefix once."""

from .prompts import PromptLayout, check_classnames, clean_classname, distinct_classnames, tokenize_classnames
from .templates import DEFAULT_TEMPLATE, check_templates, template_embeddings
from .text_encoder import encode_prompts
from .tokenizer import base_revision, load_tokenizer

__all__ = [
    "DEFAULT_TEMPLATE",
    "PromptLayout",
    "base_revision",
    "check_classnames",
    "check_templates",
    "clean_classname",
    "distinct_classnames",
    "encode_prompts",
    "load_tokenizer",
    "template_embeddings",
    "tokenize_classnames",
]
