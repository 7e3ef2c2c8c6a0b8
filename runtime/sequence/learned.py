"""Keeps what methods learn about a runtime, such as how fast it drafts, from one generation to the next."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import TypeVar

T = TypeVar("T")


class Learned:
    """Holds one object of each class that a method asks for; a runtime shares it among its sessions and threads."""

    def __init__(self) -> None:
        self._known: dict[type[object], object] = {}
        self._making = RLock()

    def recall(self, kind: type[T], make: Callable[[], T]) -> T:
        """Return the object of a class, made when it is first asked for."""
        found = self._known.get(kind)
        if isinstance(found, kind):
            return found
        with self._making:
            found = self._known.get(kind)  # another thread may have made it in the meantime
            if not isinstance(found, kind):
                found = self._known[kind] = make()
        return found

    def exchange(self, known: dict[type[object], object]) -> dict[type[object], object]:
        """Hold other objects from now on, and return those until now; no text may grow meanwhile."""
        before, self._known = self._known, known
        return before
