"""`python -m hf_coop_cli`."""

from . import app

app()
