"""Worked examples, each with something known to be true that it checks."""
