"""What a decoding method is: rounds of tokens over a session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

from fastblt.models.config import BltConfig
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

#: How a byte came about: by a decoder row of its own; drafted and verified; put by verification in the place of a
#: rejected draft; after a draft that was accepted whole; denoised in a block, without verification.
Origin = Literal["sampled", "accepted", "corrected", "free", "denoised"]


class MethodError(ValueError):
    """A method that does not exist, has a bad argument, or cannot run on a model."""


class Round(NamedTuple):
    """Tokens that one round appended to the session; the last of them, at least, is not scored."""

    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    rejected: tuple[int, ...] = ()
    """Drafted tokens that verification threw away."""
    drafted: int = 0
    """Tokens drafted for verification in this round."""
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of the model's probability of each of ``tokens``; empty where `Sampler.logprobs` is off."""

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
    def lossless(self) -> bool:
        """Whether its bytes are those of the autoregressive method (greedy), or distributed like them (sampled)."""
        ...

    def check(self, config: BltConfig) -> None:
        """Raise `MethodError` where the method cannot run on a model."""
        ...

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Round]:
        """Append tokens to the session round by round, without end; the first round scores the prompt."""
        ...
