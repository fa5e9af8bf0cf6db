"""Extend MLflow's scoring server with limits, cancellation and safe error messages."""
