"""Offers a text that continues from call to call, and can be saved to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastblt.models.tokens import decode
from fastblt.runtime.backends.protocol import CapacityError, Ids
from fastblt.runtime.generation import ByteStream, GrowingText
from fastblt.runtime.sequence.saved_session import SavedSession
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.sequences.pool import Conversation, SequencePool
from fastblt.runtime.sequences.saved_file import SequenceFileError, read_sequence, write_sequence
from fastblt.runtime.sequences.text_maker import ONLY_BOS, TextMaker
from fastblt.runtime.turns import BusyError, Turns

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

T = TypeVar("T")


class Sequence(TextMaker, Conversation):
    """Holds a text that grows call by call; `BltRuntime.sequence` is the constructor for users.

    A prompt is appended to the text, and what is generated after it becomes part of the text as well, as far as the
    caller has received it: neither a stop string does, nor the EOS that ends a generation, nor what a stream held back
    when it was closed. A call that raises leaves the text as it was.

    There may be more sequences than the runtime has places in memory. One that is not in use keeps what it has read
    until its place is needed; then that is copied to the host's memory, and brought back when the sequence is used
    again. Where the host has no room, it is computed anew. A sequence is a context manager that closes itself.

    Calls of several threads wait for each other. While a stream is open, every other call raises `BusyError`.
    """

    def __init__(self, pool: SequencePool) -> None:
        super().__init__(pool)
        self._turns = Turns()
        self._text = ONLY_BOS
        self._growing: GrowingText | None = None
        """What the last call appends to it."""
        self._closed = False

    @classmethod
    def load(cls, pool: SequencePool, path: Path) -> Self:
        """Implement `BltRuntime.load_sequence`."""
        saved = read_sequence(path, pool.backend)
        sequence = cls(pool)
        sequence._text, sequence.saved = saved.tokens, saved
        try:
            pool.lease(saved.tokens, sequence).release()
        except (BusyError, CapacityError):
            raise
        except ValueError as error:
            raise SequenceFileError(f"{path}: {error}") from error
        return sequence

    @property
    def tokens(self) -> Ids:
        """Return the text so far, int64 [n], BOS first."""
        growing = self._growing
        return self._text if growing is None or growing.failed else growing.known()

    @property
    def data(self) -> bytes:
        """Return the bytes of the text so far."""
        return decode(self.tokens)

    @property
    def text(self) -> str:
        """Return the text so far as UTF-8, invalid bytes replaced by U+FFFD."""
        return self.data.decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write the text, and what has been computed of it, to a file, which is replaced at once or not at all.

        `BltRuntime.load_sequence` continues from it, with any ``max_bytes`` that the text fits, but only with the same
        weights, backend and type; the format is that of safetensors (`fastblt.runtime.sequences.saved_file`).

        Raises:
            BusyError: see `generate`.
            OSError: the file cannot be written.
            ValueError: the sequence has been closed.
        """
        self._call(lambda: self._save(Path(path)))

    def _save(self, path: Path) -> None:
        tokens = self.tokens

        def saved(session: Session) -> SavedSession:
            session.begin(tokens, RunStats())
            return session.saved()

        write_sequence(path, self._pool.lease(tokens, self).use(saved), self.backend)

    def close(self) -> None:
        """End the sequence, and the stream that is open; its place is free for other texts. Again: do nothing."""
        self._closed = True
        self._turns.close_stream()
        self._pool.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _before(self) -> Ids:
        return self.tokens

    def _owner(self) -> Sequence:
        return self

    def _open(self, make: Callable[[], ByteStream]) -> ByteStream:
        def opened() -> ByteStream:
            self._begin()
            stream = make()
            self._growing = stream.growing
            return stream

        return self._turns.open(opened)

    def _whole(self, make: Callable[[], ByteStream], read: Callable[[ByteStream], T]) -> T:
        def work() -> T:
            self._begin()
            stream = make()
            try:
                result = read(stream)
            finally:
                stream.close()
            self._growing = stream.growing
            return result

        return self._turns.call(work)

    def _call(self, work: Callable[[], T]) -> T:
        def checked() -> T:
            self._begin()
            return work()

        return self._turns.call(checked)

    def _begin(self) -> None:
        """Make what the last call has appended part of the text."""
        if self._closed:
            raise ValueError("sequence: closed, expected an open one; BltRuntime.sequence() makes another")
        self._text = self.tokens
        self._growing = None
