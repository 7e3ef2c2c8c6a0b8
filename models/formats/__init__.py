"""Checkpoints of every layout that users hold, as this project's tensors: see `opening.open_checkpoint`."""
