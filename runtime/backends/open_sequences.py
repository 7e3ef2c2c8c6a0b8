"""Keeps count of a backend's open sequences, and shuts those that are closed."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, NoReturn, TypeVar
from weakref import WeakSet

from fastblt.runtime.backends.protocol import BackendSequence, CapacityError

S = TypeVar("S", bound=BackendSequence)

_CALLS = (
    *("run_patcher", "run_encoder", "run_global", "run_decoder", "draft"),
    *("can_resume_from", "moved_bytes", "state", "restore", "reset"),
)


class OpenSequences(Generic[S]):
    """Holds the sequences of a backend until they are closed, or nobody refers to them any more."""

    def __init__(self) -> None:
        self._open: WeakSet[S] = WeakSet()
        self._making = Lock()

    def make(self, most: int, make: Callable[[], S]) -> S:
        """Return a new sequence.

        Raises:
            CapacityError: ``most`` are open.
        """
        with self._making:
            count = len(self._open)
            if count >= most:
                raise CapacityError(f"sequences: found {count} that are open, expected fewer than {most}; close one")
            sequence = make()
            self._open.add(sequence)
            return sequence

    def close(self, sequence: S) -> None:
        """Let go of all that a sequence holds; whatever is called of it afterwards raises ValueError."""
        self._open.discard(sequence)
        held = vars(sequence)
        known = {name: held[name] for name in ("backend", "config")}
        held.clear()
        # They hide the methods of the class: calls of an open sequence have nothing to check.
        held.update(known | dict.fromkeys(_CALLS, _refuse))


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise ValueError("sequence: found a closed one, expected one that is open")
