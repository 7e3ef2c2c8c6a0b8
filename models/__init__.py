"""PyTorch definition of the Byte Latent Transformer, its configurations and its checkpoints.

This subpackage never imports ``fastblt.runtime``.
"""
