"""Holds one sequence: its tokens, its patches, its documents, and how its tokens are chosen."""
