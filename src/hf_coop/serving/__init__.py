"""Learned prompts put to work."""
