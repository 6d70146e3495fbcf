"""What to run, and running it: the papers' protocols, and the demo."""

from .arguments import parse_options
from .compare import compare_results
from .demo import run_demo
from .experiment import Experiment
from .protocols import PROTOCOLS, Run
from .results import read_rows
from .running import run_experiment
from .tables import Table, make_tables

__all__ = [
    "PROTOCOLS",
    "Experiment",
    "Run",
    "Table",
    "compare_results",
    "make_tables",
    "parse_options",
    "read_rows",
    "run_demo",
    "run_experiment",
]
