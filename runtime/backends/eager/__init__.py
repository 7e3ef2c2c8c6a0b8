"""Runs a model with eager PyTorch: the reference for correctness and speed."""
