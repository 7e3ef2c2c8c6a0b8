"""Makes a stand-in for a backend its own, only sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fastblt.runtime.backends.protocol import Progress, State

if TYPE_CHECKING:
    from typing import Self


class OnlySequence:
    """Lets a stand-in be a backend and its one sequence; each text begins at position 0 and overwrites the last."""

    sequences = 1
    sequence_bytes = 0
    model_digest = "0" * 64

    def new_sequence(self) -> Self:
        return self

    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def restore(self, state: State, progress: Progress) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass
