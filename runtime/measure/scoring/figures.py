"""Sums outcomes up. The rows' field names are a contract: scripts read them from JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.scoring.free_running import Generated, equal_bytes, type_token_ratio
from fastblt.runtime.measure.scoring.scores import AR, Scores
from fastblt.runtime.measure.scoring.teacher_forced import WindowScore
from fastblt.runtime.measure.scoring.windows import OVERALL
from fastblt.runtime.sequence.session import Latent


@dataclass(frozen=True)
class TextRow:
    """Holds the code length of true text."""

    data: str
    """Name of the text, or `OVERALL`."""
    windows: int
    bytes: int
    bits_per_byte: float
    """Each window begins with BOS and no context."""
    bytes_per_patch: float | None
    """Mean length of closed patches; null where none closed."""


@dataclass(frozen=True)
class DraftRow:
    """Holds teacher-forced acceptance: drafts after true text against the model's own greedy bytes."""

    data: str
    method: str
    """``s:K`` or ``dv:B@RULE``."""
    anchors: int
    """Drafts."""
    drafted: int
    accepted: int
    acceptance: float
    """``accepted / drafted``."""


@dataclass(frozen=True)
class MaskedRow:
    """Holds masked accuracy: bytes of true text that one decoder call restores."""

    data: str
    t: float
    """Rate at which bytes of a block are hidden."""
    latent: Latent
    """Which latent the block read: of the last ``closed`` patch, or of the open one (``partial``)."""
    hidden: int
    right: int
    accuracy: float | None
    """``right / hidden``; null where nothing was hidden."""


@dataclass(frozen=True)
class BlockRow:
    """Compares BLT-D blocks after true text with the greedy autoregressive bytes after the same text."""

    data: str
    method: str
    anchors: int
    """Blocks."""
    bytes: int
    equal: int
    agreement: float
    """``equal / bytes``."""
    common_prefix: float
    """Bytes before the first difference, mean over the blocks."""


@dataclass(frozen=True)
class GenerationRow:
    """Compares greedy BLT-D text with greedy autoregressive text after the same prompts."""

    method: str
    texts: int
    bytes: int
    """Positions compared: of each pair the longer text's."""
    equal: int
    agreement: float | None
    """``equal / bytes``; null where both are empty."""
    common_prefix: float
    """Bytes before the first difference, mean over the texts."""
    decoder_nfe_per_byte: float | None


@dataclass(frozen=True)
class DiversityRow:
    """Describes text sampled at temperature 1 (arXiv 2605.08044, Figure 8)."""

    method: str
    """``ar`` or ``d:B@ebGAMMA``."""
    top_p: float
    gamma: float | None
    """Nats; null: autoregressive."""
    texts: int
    bytes: int
    type_token_ratio: float | None
    """Different words / words of a text, mean over the texts that have any; words are separated by white space."""
    words: float
    """Of a text, mean over the texts. A text that ends in endless white space has few, and all of them differ."""
    decoder_nfe_per_byte: float | None
    """Decoder calls divided by bytes."""
    bits_per_byte: float | None
    """Code length of the texts as the model itself predicts them, byte by byte: high where they are incoherent."""


@dataclass(frozen=True)
class Figures:
    """Holds the figures of one backend."""

    text: list[TextRow]
    drafts: list[DraftRow]
    masked: list[MaskedRow]
    blocks: list[BlockRow]
    generation: list[GenerationRow]
    diversity: list[DiversityRow]


def sum_up(scores: Scores) -> Figures:
    """Return the figures of all texts together, then of each (where there are several)."""
    groups = {OVERALL: [window for windows in scores.windows.values() for window in windows]}
    if len(scores.windows) > 1:
        groups |= scores.windows
    pairs = list(groups.items())
    return Figures(
        text=[_text_row(name, windows) for name, windows in pairs],
        drafts=[row for name, windows in pairs for row in _draft_rows(name, windows)],
        masked=[row for name, windows in pairs for row in _masked_rows(name, windows)],
        blocks=[row for name, windows in pairs for row in _block_rows(name, windows)],
        generation=[_generation_row(scores.greedy[AR], found) for name, found in scores.greedy.items() if name != AR],
        diversity=[_diversity_row(found) for found in scores.sampled],
    )


K = TypeVar("K")
O = TypeVar("O")  # noqa: E741


def outcomes(windows: Sequence[WindowScore], read: Callable[[WindowScore], dict[K, list[O]]]) -> dict[K, list[O]]:
    """Return the outcomes of several windows, one after the other, by key."""
    joined: dict[K, list[O]] = {}
    for window in windows:
        for key, found in read(window).items():
            joined.setdefault(key, []).extend(found)
    return joined


def _text_row(name: str, windows: Sequence[WindowScore]) -> TextRow:
    count = sum(window.bytes for window in windows)
    bits = sum(window.nats for window in windows) / math.log(2)
    patches = sum(window.patches for window in windows)
    patched = sum(window.patched_bytes for window in windows)
    return TextRow(name, len(windows), count, bits / count, ratio(patched, patches))


def _draft_rows(name: str, windows: Sequence[WindowScore]) -> list[DraftRow]:
    rows = []
    for method, found in outcomes(windows, lambda window: window.drafts).items():
        drafted, accepted = (sum(column) for column in zip(*found, strict=True))
        rows.append(DraftRow(name, method, len(found), drafted, accepted, accepted / drafted))
    return rows


def _masked_rows(name: str, windows: Sequence[WindowScore]) -> list[MaskedRow]:
    rows = []
    for (rate, latent), found in outcomes(windows, lambda window: window.masked).items():
        hidden, right = (sum(column) for column in zip(*found, strict=True))
        rows.append(MaskedRow(name, rate, latent, hidden, right, ratio(right, hidden)))
    return rows


def _block_rows(name: str, windows: Sequence[WindowScore]) -> list[BlockRow]:
    rows = []
    for method, found in outcomes(windows, lambda window: window.blocks).items():
        size, equal, prefix = (sum(column) for column in zip(*found, strict=True))
        rows.append(BlockRow(name, method, len(found), size, equal, equal / size, prefix / len(found)))
    return rows


def _generation_row(ar: Generated, found: Generated) -> GenerationRow:
    pairs = list(zip(ar.texts, found.texts, strict=True))
    compared = sum(max(len(a), len(b)) for a, b in pairs)
    equal = sum(equal_bytes(a, b) for a, b in pairs)
    prefix = sum(common_prefix(a, b) for a, b in pairs) / len(pairs)
    per_byte = ratio(found.decoder_calls, found.bytes)
    return GenerationRow(found.method, len(pairs), compared, equal, ratio(equal, compared), prefix, per_byte)


def _diversity_row(found: Generated) -> DiversityRow:
    assert found.top_p is not None
    ratios = [value for text in found.texts if (value := type_token_ratio(text)) is not None]
    mean = ratio(sum(ratios), len(ratios))
    per_byte = ratio(found.decoder_calls, found.bytes)
    bits = None if found.nats is None else ratio(found.nats / math.log(2), found.bytes)
    words = sum(len(text.split()) for text in found.texts) / len(found.texts)
    return DiversityRow(
        found.method, found.top_p, found.gamma, len(found.texts), found.bytes, mean, words, per_byte, bits
    )


def ratio(numerator: float, denominator: float) -> float | None:
    """Return a quotient; None where there is nothing to divide by."""
    return numerator / denominator if denominator else None
