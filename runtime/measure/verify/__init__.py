"""Compares a GPU with the CPU, tensor by tensor."""
