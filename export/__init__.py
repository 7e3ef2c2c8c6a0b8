"""Turns a trained Byte Latent Transformer checkpoint into a bundle of ONNX graphs.

This is the only subpackage that knows both the PyTorch models and the runtime.
"""
