"""Shares a loaded model among many texts: places for them, prompts that are reused, sequences that are saved."""
