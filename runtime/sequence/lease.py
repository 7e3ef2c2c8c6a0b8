"""Lends a session to one text at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fastblt.runtime.sequence.session import Session

T = TypeVar("T")


@dataclass(eq=False)
class Lease:
    """Has a session until it is released, or nobody refers to it any more.

    Whoever ends it by a plain assignment to `held`, which no interrupt can divide, has released it, too; those who wait
    for a session then notice a little later.
    """

    session: Session
    thread: int | None
    """The thread whose call it is for; None: a stream, which may stay open for ever."""
    _wake: Callable[[], None] = field(repr=False)
    held: bool = True
    """Whether nobody else may have the session."""

    def use(self, work: Callable[[Session], T]) -> T:
        """Work with the session, then give it back; what an error leaves in it is not relied on."""
        try:
            return work(self.session)
        except BaseException:
            self.session.spoil()
            raise
        finally:
            self.held = False
            self.release()

    def leave_batch(self) -> None:
        """Let the session run alone again, as long as it has not been given back; an error spoils what it holds."""
        if self.held:
            try:
                self.session.leave_batch()
            except BaseException:
                self.session.parts.spoil()
                raise

    def release(self) -> None:
        """Give the session back, which leaves the batch that it is in; releasing again does nothing."""
        self.leave_batch()
        self.held = False
        self._wake()
