"""Runs a bundle with ONNX Runtime on the CPU."""
