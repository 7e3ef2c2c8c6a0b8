"""Chooses method and draft length round by round."""
