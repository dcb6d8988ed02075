"""Exercises that answer: the judge, and the tasks of the notebooks."""

from ..files import need

need("notebooks", "IPython")
