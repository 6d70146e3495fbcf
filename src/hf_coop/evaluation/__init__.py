"""How good a prompt is, what it is compared with, and what it looks like."""
