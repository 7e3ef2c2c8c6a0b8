"""Defines calls of a model's parts as data, and what runs those of several sequences together.

Each call says which part it runs, and makes itself by the method of a sequence that answers it.

A sequence runs alone through `fastblt.runtime.backends.protocol.BackendSequence`. Where a backend can batch, a `Batch`
takes the calls of many sequences that ask for the same part, runs the graph once for all whose shapes allow it, and
hands every sequence its own rows: weights are read once instead of once a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import BackendSequence, DecoderRows, Drafted, Floats, Ids, Pick, decoder_of

#: Most rows of a sequence in a call of several; more of them, a piece of a prompt, are worth a read of the weights.
SHARED_ROWS = 32


class PatcherCall(NamedTuple):
    """Holds the arguments of `BackendSequence.run_patcher`."""

    position: int
    ids: Ids
    visible_from: Ids | None

    def part(self, config: BltConfig) -> str:
        """Return the part that it runs."""
        return "patcher"

    def rows(self, config: BltConfig) -> int:
        """Return its rows."""
        return len(self.ids)

    def run(self, sequence: BackendSequence) -> Floats:
        """Make the call by a sequence."""
        return sequence.run_patcher(*self)


class EncoderCall(NamedTuple):
    """Holds the arguments of `BackendSequence.run_encoder`."""

    position: int
    ids: Ids
    starts: Ids
    ends: Ids
    visible_from: Ids | None

    def part(self, config: BltConfig) -> str:
        """Return the part that it runs."""
        return "encoder"

    def rows(self, config: BltConfig) -> int:
        """Return its rows; the first ids are those that hash n-grams reach back to."""
        return len(self.ids) - (config.hash.context - 1)

    def run(self, sequence: BackendSequence) -> None:
        """Make the call by a sequence."""
        sequence.run_encoder(*self)


class GlobalCall(NamedTuple):
    """Holds the arguments of `BackendSequence.run_global`."""

    first_patch: int
    patches: int
    visible_from: Ids | None

    def part(self, config: BltConfig) -> str:
        """Return the part that it runs."""
        return "global"

    def rows(self, config: BltConfig) -> int:
        """Return its rows, one per patch."""
        return self.patches

    def run(self, sequence: BackendSequence) -> None:
        """Make the call by a sequence."""
        sequence.run_global(*self)


class DecoderCall(NamedTuple):
    """Holds the arguments of `BackendSequence.run_decoder`."""

    position: int
    ids: Ids
    latents: Ids
    block: int
    visible_from: Ids | None

    def part(self, config: BltConfig) -> str:
        """Return the part that it runs."""
        return decoder_of(config, self.block)

    def rows(self, config: BltConfig) -> int:
        """Return its rows, those of the block included."""
        return len(self.ids)

    def run(self, sequence: BackendSequence) -> DecoderRows:
        """Make the call by a sequence."""
        return sequence.run_decoder(*self)


class DraftCall(NamedTuple):
    """Holds the arguments of `BackendSequence.draft`."""

    position: int
    ids: Ids
    latent: int
    most: int
    pick: Pick | None
    visible_from: int

    def part(self, config: BltConfig) -> str:
        """Return the part that it runs; the encoder runs too where the decoder reads byte states."""
        return "decoder"

    def rows(self, config: BltConfig) -> int:
        """Return the rows of each of its steps."""
        return 1

    def run(self, sequence: BackendSequence) -> Drafted:
        """Make the call by a sequence."""
        return sequence.draft(*self)


PartCall: TypeAlias = PatcherCall | EncoderCall | GlobalCall | DecoderCall | DraftCall


class Answer(NamedTuple):
    """Holds what a call returned to one sequence, and its share of what that cost."""

    result: Any
    """What the method of `BackendSequence` returns; it may be views that the batch's next call overwrites."""
    seconds: float
    """Of the call, divided by the sequences that it served."""
    moved_bytes: float
    """Of weights and caches that the call reads, divided by the sequences that it served."""
    calls: float
    """Calls of the graph divided by the sequences that they served; of a draft, those of the decoder."""
    error: Exception | None = None
    """What ended this sequence's call, and nobody else's: its pick has raised it, and what it holds is not to be relied
    on."""


class Batch(Protocol):
    """Runs calls of up to ``size`` sequences of one backend together; one thread at a time may use it.

    A sequence joins with its first call. It runs alone again whenever one of its own methods is called.
    """

    size: int

    def run(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[Answer]:
        """Run calls of one kind, each of another sequence, in as few calls of the graph as their shapes allow.

        Every row is what the sequence would have computed alone.

        Args:
            calls: 1 to ``size``, and all `PatcherCall`, or all `EncoderCall` and so on; decoder calls are all of the
                same part (`fastblt.runtime.backends.protocol.decoder_of`).

        Returns:
            One answer per call, in order.

        Raises:
            CapacityError: a sequence has no room for its rows, or there is no memory for another one; no `pick` has
                been called, and all calls may be made again.
            ValueError: a sequence is closed or of another backend, or the batch is closed.
            GraphError: a graph fails; what any of these sequences hold is not to be relied on.
        """
        ...

    def leave(self, sequence: BackendSequence) -> None:
        """Let a sequence go on alone with all that it has computed here; does nothing for one that is not in it."""
        ...

    def close(self) -> None:
        """Let every sequence leave, and let go of the memory; closing again does nothing."""
        ...


@runtime_checkable
class BatchingBackend(Protocol):
    """Marks a backend that can run sequences together; others run them one after the other."""

    def new_batch(self, size: int) -> Batch:
        """Return an empty batch for up to ``size`` sequences.

        Raises:
            BundleError: the graphs or engines are of an earlier version and take one sequence.
            CapacityError: there is no memory for it.
            ValueError: ``size`` is none that a batch can have.
        """
        ...
