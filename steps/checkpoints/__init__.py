"""Where a checkpoint comes from: the miniature, the hub, a folder; and its export to ONNX."""
