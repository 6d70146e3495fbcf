"""Adapters on disk and on the Hub: their files, base model, model card, and conversion of published checkpoints."""
