"""Checkpoints: where they come from (miniature, hub, folder), their checks, and their export to ONNX."""
