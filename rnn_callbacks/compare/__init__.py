"""Runs side by side, afterwards: ``compare(load_runs("lightning_logs"))``, or ``rnn-callbacks compare``."""

from .comparison import Comparison, compare
from .runs import Run, load_runs

__all__ = ["Comparison", "Run", "compare", "load_runs"]
