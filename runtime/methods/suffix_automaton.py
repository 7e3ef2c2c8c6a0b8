"""Finds where the end of a text occurred before: a suffix automaton that grows with the text.

Its states are the sets of substrings that end at the same places (Blumer et al., 1985). The suffix link of the state
of the whole text is the longest suffix that has an earlier occurrence. One more token costs constant time, amortized.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Tokens that are kept when the automaton is built anew, which happens at twice as many.
KEPT = 1 << 13


class SuffixAutomaton:
    """Holds the end of a text, at most ``2 * kept`` tokens, and the longest earlier occurrence of its own end.

    Args:
        kept: tokens that stay when older ones are forgotten, >= 1.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._begin([])

    def _begin(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        """Of each state: its longest substring."""
        self._end = [0]
        """Of each state: the position after an occurrence, the one that was met last as the longest match."""
        self._last = 0
        self.matched = 0
        """Tokens of the longest suffix that occurred before."""
        self._follows = 0
        """Position after its earlier occurrence."""
        for token in tokens:
            self._add(token)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        if len(tokens) > 2 * self._kept:
            tokens = tokens[-self._kept :]
            self._begin([])
        for token in tokens:
            if len(self._tokens) == 2 * self._kept:
                self._begin(self._tokens[-self._kept :])
            self._add(token)

    def continuation(self, most: int) -> list[int]:
        """Return what followed the earlier occurrence, at most ``most`` tokens; empty where there was none.

        An occurrence that runs into the end of the text is a period: it goes on in the continuation.
        """
        if not self.matched:
            return []
        found = self._tokens[self._follows : self._follows + most]
        period = len(found)
        while len(found) < most:
            found.append(found[-period])
        return found

    def _add(self, token: int) -> None:
        self._tokens.append(token)
        size = len(self._tokens)
        following, link = self._next, self._link
        state, new = self._last, self._new_state(size, size, {})
        while state >= 0 and token not in following[state]:
            following[state][token] = new
            state = link[state]
        suffix = 0 if state < 0 else self._suffix(state, token)
        link[new] = suffix
        self._last, self.matched = new, self._length[suffix]
        self._follows, self._end[suffix] = self._end[suffix], size

    def _suffix(self, state: int, token: int) -> int:
        """Return the state of what ``state`` holds at most, and the token; it is split off where others are longer."""
        target, length = self._next[state][token], self._length[state] + 1
        if self._length[target] == length:
            return target
        clone = self._new_state(length, self._end[target], dict(self._next[target]))
        self._link[clone], self._link[target] = self._link[target], clone
        while state >= 0 and self._next[state].get(token) == target:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _new_state(self, length: int, end: int, following: dict[int, int]) -> int:
        self._next.append(following)
        self._link.append(-1)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1
