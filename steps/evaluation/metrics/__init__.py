"""Metrics as modules of the `evaluate` library: `evaluate.load("steps/evaluation/metrics/chrf.py")`.

Each takes `predictions` (strings) and `references` (lists of accepted strings) and returns its mean under its own
name and the score of every row, within 0..1, under `scores`. A new metric is one new file: a docstring, a function
that scores one row, and a call of `row_metric`.
"""
