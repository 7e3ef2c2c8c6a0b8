"""Trains small Byte Latent Transformers on byte text."""
