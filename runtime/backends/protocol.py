"""Defines what a backend does: it runs the four parts of a model on new rows, over caches that each sequence has.

A `Backend` is what is loaded once: weights, sessions of ONNX Runtime or engines, tables. A `BackendSequence` is what
each text in flight has of its own: caches, and what passes from part to part. It knows tensors and positions, and
nothing of prompts, future patches or methods. Every call names the position of its first row; rows at later positions
that an earlier call left in the caches are overwritten. Rewinding therefore needs no call at all, unless the caches
have dropped what is needed again (`BackendSequence.can_resume_from`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
#: Copies on the host of what a sequence has computed, by name; see `BackendSequence.state`.
State = Mapping[str, NDArray[Any]]

#: Most rows in one call; longer prompts are fed in pieces.
MAX_ROWS = 256
#: Longest patch that is encoded in one piece when it closes (see `fastblt.runtime.sequence.session`).
WHOLE_PATCH_LIMIT = 64
#: Rows that a backend must be able to take in one call.
ROW_CAPACITY = MAX_ROWS + WHOLE_PATCH_LIMIT
#: Positions past ``max_bytes`` that a draft may use before it is cut.
DRAFT_SLACK = 64

PARTS = ("patcher", "encoder", "global", "decoder")


class CapacityError(ValueError):
    """Reports a text, or an open patch, that is longer than what the memory of a backend is made for."""


def encodes_whole_patches(config: BltConfig) -> bool:
    """Return whether a patch is encoded in one call, when it closes.

    It is where the decoder does not read byte states and patches are limited to `WHOLE_PATCH_LIMIT` bytes.
    """
    longest = config.patching.max_patch_length
    return not config.decoder_reads_states and longest is not None and longest <= WHOLE_PATCH_LIMIT


def parts_in(calls: Mapping[str, float]) -> tuple[str, ...]:
    """Return the parts to report: `PARTS`, and the draft decoder if it has been called."""
    return (*PARTS, "draft") if calls.get("draft") else PARTS


def decoder_of(config: BltConfig, block: int) -> str:
    """Return the part that decodes a call: ``draft`` for calls with a block where there is a draft decoder."""
    return "draft" if block and config.has_draft else "decoder"


class DecoderRows(NamedTuple):
    """Holds the decoder's results for n rows; the arrays may be views that the next call overwrites."""

    best: Ids
    """int64 [n]: most likely token."""
    probability: Floats
    """float32 [n]: its probability."""
    entropy: Floats
    """float32 [n]: entropy of the row's distribution, nats."""
    logits: Floats
    """float32 [n, vocab]."""

    def part(self, start: int, end: int | None = None) -> DecoderRows:
        """Return the rows from ``start`` to before ``end``, as views of these."""
        at = slice(start, end)
        return DecoderRows(self.best[at], self.probability[at], self.entropy[at], self.logits[at])

    def followed_by(self, other: DecoderRows) -> DecoderRows:
        """Return these rows and others behind them, copied."""
        return DecoderRows(
            np.concatenate([self.best, other.best]),
            np.concatenate([self.probability, other.probability]),
            np.concatenate([self.entropy, other.entropy]),
            np.concatenate([self.logits, other.logits]),
        )

    def copy(self) -> DecoderRows:
        """Return the same rows in memory of their own."""
        return DecoderRows(self.best.copy(), self.probability.copy(), self.entropy.copy(), self.logits.copy())


class Drafted(NamedTuple):
    """Holds what a draft of n bytes returned and what part of its time the encoder took."""

    tokens: Ids
    """int64 [n]."""
    probabilities: Floats
    """float32 [n]: of the rows' most likely tokens."""
    encoder_seconds: float = 0.0
    """Time spent in the encoder, where drafted rows read its byte states; the rest of the call is the decoder's.

    As for `BackendSequence.run_encoder`, it ends when the encoder's call returns. On a GPU that call only queues the
    work, and the wait for both graphs counts as the decoder's time, since nothing waits between the two. It is 0 for a
    draft that is chained on the device."""


#: Takes the one row of a draft's step and returns the next token, and whether to draft another row after it.
Pick = Callable[[DecoderRows], tuple[int, bool]]


class Progress(NamedTuple):
    """Holds how far a sequence has read its text."""

    tokens: int = 0
    """Leading positions that are scored."""
    open_patch: int = 0
    """First position of the patch that is pooled next."""
    patches: int = 0
    """Latents that have been made."""


class Backend(Protocol):
    """Holds one loaded model, which any number of threads may use at once."""

    name: str
    """Name in `fastblt.runtime.backends.registry`, as the user writes it."""
    device: str
    """``cpu`` or ``cuda``."""
    config: BltConfig
    max_bytes: int
    """Longest text of a sequence, in bytes."""
    sequences: int
    """Most sequences at once: as many as memory holds, or as have been prepared."""
    sequence_bytes: int
    """Memory that each of them takes at most, in bytes; on a GPU it is taken when the model is loaded."""

    @property
    def model_digest(self) -> str:
        """Return what identifies the weights and the configuration: 64 hexadecimal digits."""
        ...

    def new_sequence(self) -> BackendSequence:
        """Return a sequence whose caches are empty.

        Raises:
            CapacityError: as many as there can be are open.
            GraphError: the device does not empty them.
        """
        ...


class BackendSequence(Protocol):
    """Runs a backend's model over caches of its own, which are allocated once for ``max_bytes`` bytes of text.

    One thread at a time may be inside its calls; sequences do not wait for each other unless the device has to.

    ``visible_from``, int64 [n], is the first position (of `run_global`: patch) that each row may see; windows and
    causality hide more. None: 0. Where documents are masked it is the beginning of the row's document.
    """

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Return the entropy of the token after each of ``ids`` int64 [n], float32 [n], in nats.

        Not called where the model has no patcher.
        """
        ...

    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        """Encode rows and pool patches; the patch embeddings stay with the backend.

        Args:
            position: of the first row.
            ids: int64 [context - 1 + n]: the tokens that the hash n-grams of the first row reach back to (0 before
                the sequence), then the n rows.
            starts: int64 [p], p >= 1, first position of each patch to pool; rows since then have been encoded.
            ends: int64 [p], position after the last byte of each patch.
            visible_from: see the class.
        """
        ...

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Compute the latents of the first ``count`` patches that the last `run_encoder` pooled.

        They stay with the backend, from index ``first_patch`` on.
        """
        ...

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Decode rows, and return the distribution of the token after each.

        Args:
            position: of the first row.
            ids: int64 [n].
            latents: int64 [n], index of the patch whose latent each row reads; not decreasing.
            block: the last ``block`` rows are denoised together and see each other; every other row sees positions
                up to its own. Where there is a draft decoder, it decodes all rows of a call with a block. They see the
                decoder's rows before them in its caches, and are overwritten there like any others.
            visible_from: see the class.
        """
        ...

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Decode up to ``count`` rows one after the other, all with one latent, each from the token before it.

        Args:
            position: of the token.
            ids: int64 [context]: the tokens that its hash n-grams reach back to, then the token.
            latent: index of the patch.
            count: most rows to decode.
            pick: chooses the token after each row and whether to continue; None: the most likely one, ``count`` times.
            visible_from: first position that every row may see.

        Returns:
            n <= count tokens, their rows' probabilities, and the encoder's part of the time.
        """
        ...

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Return whether the caches still hold all that rows from ``position`` on see; if not, a session starts over.

        Args:
            position: of the first row.
            open_patch: first position of the patch that is pooled next.
        """
        ...

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Return the bytes of weights and caches that one call of a part reads, for ``rows`` rows at this position."""
        ...

    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Return copies of the rows that the rest of a text can read, by name; the first axis counts rows.

        Names are ``pool`` or ``states``, ``latent_kv``, and a part and its cache: ``decoder.key_0``.
        """
        ...

    def restore(self, state: State, progress: Progress) -> None:
        """Write back what `state` returned for this progress, here or in another sequence of the same model.

        Raises:
            ValueError: a tensor is missing, or of another shape or type; nothing has been written.
        """
        ...

    def reset(self) -> None:
        """Forget the text, after a failure or before another one: the next rows begin at position 0."""
        ...

    def close(self) -> None:
        """Let go of the caches, or give them back; closing again does nothing."""
        ...
