"""Quantizes exported models, and measures on held-out text what that costs."""
