"""Defines the error of everything about grammars."""


class GrammarError(ValueError):
    """Reports a grammar that is malformed, impossible or too large, or that contradicts another wish."""
