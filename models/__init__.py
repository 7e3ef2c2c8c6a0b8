"""Defines the Byte Latent Transformer, its configurations and its checkpoints, in PyTorch.

This subpackage never imports ``fastblt.runtime``.
"""
