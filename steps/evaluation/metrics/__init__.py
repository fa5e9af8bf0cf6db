"""Metrics as modules of the `evaluate` library: `evaluate.load("steps/evaluation/metrics/chrf.py")`.

Each takes predictions (strings) and references (lists of accepted strings) and returns its mean under
its own name and the score of every row, within 0..1, under `scores`.
"""
