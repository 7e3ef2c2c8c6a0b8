"""Runs an exported bundle: sessions with IO-bound key-value buffers, and the decoding strategies.

Nothing in the decoding path imports PyTorch.
"""
