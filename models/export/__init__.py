"""The router as files: bundles, ONNX and traced graphs, and how files are written whole and read safely."""
