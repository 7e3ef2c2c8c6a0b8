"""Measures speed, cost and correctness; nothing that generates imports it."""
