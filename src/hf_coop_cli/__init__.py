"""The `hf-coop` command.

It lies beside the package, not in it, because importing the package imports PEFT and transformers: `--help` answers
at once, and each command imports what it needs when it runs.
"""

from . import learn, use, share  # noqa: I001 - the order of the groups in --help
from .command import app

__all__ = ["app", "learn", "share", "use"]
