"""Exercises that answer: the judge, and the tasks of the notebooks."""
