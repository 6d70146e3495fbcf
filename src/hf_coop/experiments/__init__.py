"""What to run, and running it: the demo."""

from .demo import run_demo

__all__ = ["run_demo"]
