"""Training of small Byte Latent Transformers from byte text."""
