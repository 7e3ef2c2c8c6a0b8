"""Reads checkpoints of every supported layout as this project's tensors: see `open.open_checkpoint`."""
