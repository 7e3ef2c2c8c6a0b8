"""Measures texts that grow at the same time, with calls shared and in turn."""
