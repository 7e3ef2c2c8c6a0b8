"""Finds out what this machine has, what works on it, and how much memory a model needs."""
