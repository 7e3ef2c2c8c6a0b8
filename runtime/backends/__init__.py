"""Runs the four graphs of a model: one protocol, one folder for each implementation."""
