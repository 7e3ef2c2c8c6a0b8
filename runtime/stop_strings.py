"""Finds stop strings in a text that grows byte by byte, in constant time per byte however many and long they are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


class _Prefix:
    """Stands for bytes that some of the strings begin with: a node of the automaton of Aho and Corasick."""

    __slots__ = ("children", "complete", "end", "fallback", "first", "length")

    def __init__(self, first: int, end: int, length: int) -> None:
        self.first, self.end, self.length = first, end, length
        """The sorted strings from ``first`` to before ``end`` are those that begin with it."""
        self.children: dict[int, _Prefix | None] = {}
        """The prefixes that have one byte more, by that byte, as far as they were asked for."""
        self.fallback = self
        """Longest prefix that this one ends with, but for itself."""
        self.complete = 0
        """Length of the longest string that this one ends with; 0: none."""


class StopSearch:
    """Reads a text byte by byte until it ends with one of several strings.

    Prefixes are made when the text first ends with them, so that time and memory depend on what matches.

    Args:
        strings: at least one; none is empty.
    """

    def __init__(self, strings: Sequence[bytes]) -> None:
        self._strings = sorted(set(strings))
        self._nothing = _Prefix(0, len(self._strings), 0)
        self._longest = self._nothing
        """Longest prefix that the text ends with."""

    @property
    def held_back(self) -> int:
        """Return the number of bytes at the end of the text that may be the beginning of a string."""
        return self._longest.length

    def read(self, byte: int) -> int:
        """Read the next byte of the text.

        Returns:
            The length of the string that it completes, of several the longest; 0: none. Nothing is read afterwards.
        """
        prefix = self._longest
        if byte in prefix.children:
            child = prefix.children[byte]
            if child is not None:
                self._longest = child
                return child.complete
            if prefix is self._nothing:
                return 0
        self._longest = found = self._follow(prefix, byte)
        return found.complete

    def _follow(self, prefix: _Prefix, byte: int) -> _Prefix:
        """Return the longest prefix that ends with a byte after ``prefix``, or after what that ends with."""
        made, found = list[_Prefix](), None
        # From the longest to the shortest: the first that continues is the new one. Where it was not known before, the
        # next one that continues is its fallback, and so on.
        while found is None:
            known = byte in prefix.children
            child = prefix.children[byte] if known else self._continue(prefix, byte)
            if child is not None and not known:
                made.append(child)
            if known and child is not None:
                found = child
            elif prefix is self._nothing:
                found = prefix
            prefix = prefix.fallback
        for child in reversed(made):
            child.fallback, found = found, child
            if len(self._strings[child.first]) == child.length:
                child.complete = child.length
            else:
                child.complete = child.fallback.complete
        return found

    def _continue(self, prefix: _Prefix, byte: int) -> _Prefix | None:
        """Return a prefix with one byte more; None where no string begins so."""
        at, strings = prefix.length, self._strings
        first = prefix.first + (len(strings[prefix.first]) == at)  # the shortest comes first
        first, end = (
            side(strings, byte, first, prefix.end, key=lambda string: string[at])
            for side in (bisect_left, bisect_right)
        )
        child = prefix.children[byte] = _Prefix(first, end, at + 1) if first < end else None
        return child
