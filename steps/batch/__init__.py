"""Batch scoring of a big table on one machine, in parts that survive a kill."""
