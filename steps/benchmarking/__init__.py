"""Measure this project's engines, server and steps against what they are built on, side by side.

control.py tells whether the machine was quiet, comparison.py takes turns between two sides, place.py holds what is
compared (a random checkpoint and the models built from it), report.py prints and logs. Each file of sections/ yields
the comparisons of one section.
"""
