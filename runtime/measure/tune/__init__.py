"""Finds the fastest settings for a machine and a user's prompts, and keeps them in a profile."""
