"""Measures an exported model on held-out text and derives its quantization from what it saw."""
