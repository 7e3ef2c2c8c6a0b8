"""Keeps generated text inside a grammar: which bytes may come next, and which must."""
