"""What a decoding method is: rounds of tokens over a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Protocol

from fastblt.runtime.backend import DecoderRows
from fastblt.runtime.session import Session

#: How a byte came about: by a decoder row of its own; drafted and verified; put by verification in the place of a
#: rejected draft; after a draft that was accepted whole.
Origin = Literal["sampled", "accepted", "corrected", "free"]

#: Chooses the token after row ``index`` of some decoder rows: greedy, or sampled.
Choose = Callable[[DecoderRows, int], int]


class Round(NamedTuple):
    """Tokens that one round appended to the session; all but the last are scored."""

    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    rejected: tuple[int, ...] = ()
    """Drafted tokens that verification threw away."""
    drafted: int = 0
    """Tokens drafted in this round."""

    @property
    def accepted(self) -> int:
        """Drafted tokens that verification kept."""
        return self.drafted - len(self.rejected)


class Method(Protocol):
    """A way of decoding; one small file each, registered in `fastblt.runtime.methods`."""

    @property
    def name(self) -> str:
        """As the user gives it, e.g. ``s:8``."""
        ...

    @property
    def greedy_only(self) -> bool:
        """Whether its output is that of the autoregressive method only when tokens are chosen greedily."""
        ...

    def rounds(self, session: Session, choose: Choose) -> Iterator[Round]:
        """Append tokens to the session round by round, without end."""
        ...
