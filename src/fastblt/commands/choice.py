"""Makes the values of an option that takes one of a few words."""

from __future__ import annotations

from enum import Enum


class Choice(str, Enum):
    """Base of such values: each is the word itself (`enum.StrEnum` came with Python 3.11)."""

    __str__ = str.__str__
