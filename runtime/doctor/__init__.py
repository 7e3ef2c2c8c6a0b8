"""Finds out what this machine has and what will work on it."""
