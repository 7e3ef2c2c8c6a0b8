"""Defines what a method asks of its session: `ScoreRequest`, `DraftRequest` and `DenoiseRequest`.

A method does not call the model. It yields requests and is sent the answers; whoever runs it decides when, and may
gather the requests of many sequences into one call. The functions below ask and return what was answered, so that a
method reads ``rows = yield from score()``.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from fastblt.models.config import BlockLatent
from fastblt.runtime.backends.protocol import DecoderRows, Floats, Ids, Pick

#: Which latent the rows of a block or of a draft read, see `BltConfig.block_latent`.
Latent = BlockLatent
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Asks to run all parts on the tokens that are not scored."""

    block: Ids | None = None
    """int64 [size]: bytes after the last token to denoise in the same pass, MASK_ID where one is not decided."""
    latent: Latent = "closed"
    """Which latent the block reads, here and in later requests of `DenoiseRequest`."""
    only_known: bool = False
    """Only the rows that read latents which exist already."""
    most: int | None = None
    """Most tokens to score, the first of those that are not; None: all."""


@dataclass(frozen=True, eq=False)
class DraftRequest:
    """Asks to continue by the decoder alone, byte by byte."""

    most: int
    pick: Pick | None
    latent: Latent


@dataclass(frozen=True, eq=False)
class DenoiseRequest:
    """Asks to run a block by the decoder alone."""

    block: Ids
    with_last: bool
    """Whether it also reads the last token, which stays unscored."""


Request: TypeAlias = ScoreRequest | DraftRequest | DenoiseRequest
#: Yields requests, is sent their answers, and returns what came of it.
Steps: TypeAlias = Generator[Request, Any, T]


#: One object each: to make one costs more than all else that happens between two bytes of ``ar``.
_ALL, _KNOWN = ScoreRequest(), ScoreRequest(only_known=True)


def score() -> Steps[DecoderRows]:
    """Score all tokens that are not scored.

    Returns:
        The decoder's rows of the last (at most `MAX_ROWS`) of them; the last row is about the next token. As in every
        answer, they are views that the next request overwrites.
    """
    return cast("DecoderRows", (yield _ALL))


def score_known() -> Steps[DecoderRows | None]:
    """Score only rows that read latents which exist already: those before the first patch that closes among them.

    Verification that ends there costs no global call, and an encoder call only where the decoder reads byte states.

    Returns:
        Their rows; None: nothing was scored, since they are all of the rows, or fewer than two. A single such row is
        not worth a call of its own: unless there is a draft decoder, the byte that it verifies was, as a rule, drafted
        from that very row.
    """
    return cast("DecoderRows | None", (yield _KNOWN))


def score_with_block(block: Ids, latent: Latent) -> Steps[tuple[DecoderRows, DecoderRows]]:
    """Score, and denoise a block after the last token, in the same decoder call unless a draft decoder does it.

    Args:
        block: int64 [size], MASK_ID where a byte is not decided. Nothing of it is committed.
        latent: which one the block's rows read, here and in later calls of `denoise`.

    Returns:
        Rows of the tokens that were not scored, as `score` returns them, and of the block; block row i is about the
        block's own byte i.
    """
    return cast("tuple[DecoderRows, DecoderRows]", (yield ScoreRequest(block, latent)))


def draft_with_block(block: Ids) -> Steps[tuple[DecoderRows, DecoderRows]]:
    """Denoise a block by one decoder alone: it also reads the last token, which stays unscored.

    Where there is a draft decoder, it decodes the last token's row, too, which verification then overwrites. All rows
    read the newest closed latent, so no other part has to run.

    Returns:
        The row of the last token (about the block's first byte), and the block's.
    """
    return cast("tuple[DecoderRows, DecoderRows]", (yield DenoiseRequest(block, with_last=True)))


def denoise(block: Ids) -> Steps[DecoderRows]:
    """Run a block again, after `score_with_block` or `draft_with_block`, with some of its bytes decided."""
    return cast("DecoderRows", (yield DenoiseRequest(block, with_last=False)))


def draft(most: int, pick: Pick | None = None, latent: Latent = "closed") -> Steps[tuple[Ids, Floats]]:
    """Continue by the decoder: all rows read the newest latent, patches are ignored.

    The last token must be the only one that is not scored. Nothing is committed.

    Args:
        most: most bytes.
        pick: chooses each byte and whether another one follows; None: greedy, ``most`` bytes.
        latent: ``closed``: the newest that exists; ``partial``: that of the open patch up to the last token, which
            encoder and global transformer make first.

    Returns:
        Tokens int64 [n] and the probabilities float32 [n] of the rows' most likely tokens.
    """
    return cast("tuple[Ids, Floats]", (yield DraftRequest(most, pick, latent)))
