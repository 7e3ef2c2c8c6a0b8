"""Provides a model of three tokens whose rows are looked up, and the exact probabilities of what a model can sample.

The rows of `TableBackend` are looked up by everything that a row may read (clean tokens, latents, the block), so that
stale latents and half-decided blocks lead to other distributions than the model's own. The probability of every
continuation is enumerated without session or sampler.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fakes.only_sequence import OnlySequence

from fastblt.models.config import BltConfig
from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.protocol import Backend, DecoderRows, Drafted, Floats, Ids, Pick
from fastblt.runtime.methods import parse_method, rounds_of
from fastblt.runtime.sequence.sampling import Distribution, Sampler
from fastblt.runtime.sequence.session import Session

#: Tokens of the table's vocabulary, 0 .. WORDS - 1.
WORDS = 3
#: Scale of the table's logits.
CONTRAST = 0.7

Text = tuple[int, ...]
Distributions = dict[Text, float]


def logits_of(*key: object) -> Floats:
    """Return random logits float32 [WORDS] that depend on the key alone."""
    random = np.random.default_rng(zlib.crc32(repr(key).encode()))
    return random.normal(size=WORDS).astype(np.float32)


def closes(prefix: Text) -> bool:
    """Return whether the last token of a prefix closes its patch."""
    return zlib.crc32(bytes(prefix)) % 5 < 2


class TableBackend(OnlySequence):
    """Runs a model whose rows depend on exactly what a row of a BLT-D decoder may read."""

    name = "table"
    device = "cpu"

    def __init__(self, config: BltConfig) -> None:
        self.config = config
        self.max_bytes = 60
        self._tokens: list[int] = []
        self._pooled: list[Text] = []
        self._latents: list[Text] = []
        #: What the decoder's cache holds of each position: the token, and the latent that its row read.
        self._cells: list[tuple[int, Text]] = []
        self._known: dict[object, DecoderRows] = {}

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        self._tokens[position:] = ids.tolist()
        high = [closes(tuple(self._tokens[: p + 1])) for p in range(position, len(self._tokens))]
        return np.where(high, self.config.patching.threshold + 1, 0.0).astype(np.float32)

    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        self._pooled = [tuple(self._tokens[:end]) for end in ends.tolist()]

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        self._latents[first_patch:] = self._pooled[:count]

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        read = [self._latents[i] for i in latents.tolist()]
        self._cells[position:] = zip(ids.tolist(), read, strict=True)
        clean = len(self._cells) - block
        rows: list[tuple[object, ...]] = [tuple(self._cells[: p + 1]) for p in range(position, clean)]
        if block:
            content = tuple(token for token, _ in self._cells[clean:])
            rows += [(*self._cells[:clean], read[-1], content, i) for i in range(block)]
        return self._rows(tuple(rows))

    def _rows(self, keys: tuple[tuple[object, ...], ...]) -> DecoderRows:
        if keys not in self._known:
            logits = np.stack([self._logits(*key) for key in keys])
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            self._known[keys] = DecoderRows(p.argmax(1), p.max(1), -(p * np.log(p)).sum(1), logits)
        return self._known[keys]

    def _logits(self, *key: Any) -> Floats:
        """Return the logits of a clean row, or of a row of a block.

        A block is decided from the right, and its bytes often repeat the one to their right. That is as far from
        autoregression as can be: a byte that was drawn before its predecessor determines what that one will be.
        """
        logits = CONTRAST * logits_of(key)
        if isinstance(key[-1], int):
            content, index = key[-2:]
            logits *= (1 + index) / 3
            right = content[index + 1 : index + 2]
            if right and right[0] != MASK_ID:
                logits[right[0]] += 3.0
        return logits

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        assert pick is not None, "greedy drafts are not what these tests are about"
        token, tokens = int(ids[-1]), []
        for step in range(count):
            row = self.run_decoder(position + step, np.array([token]), np.array([latent]))
            token, more = pick(row)
            tokens.append(token)
            if not more:
                break
        return Drafted(np.array(tokens), np.ones(len(tokens), dtype=np.float32))

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        return True

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        return 1


def naive_distribution(
    logits: Floats,
    temperature: float,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    bias: Sequence[float] = (),
) -> list[float]:
    """Return the probabilities after bias, softmax, top-k, top-p and min-p, applied one after the other; normalized."""
    wide = torch.tensor(logits, dtype=torch.float64) + (torch.tensor(bias, dtype=torch.float64) if len(bias) else 0.0)
    p = wide.div(temperature).softmax(0).tolist()
    ranked = sorted(range(len(p)), key=lambda t: -p[t])[: top_k or None]
    total = sum(p[token] for token in ranked)
    kept: dict[int, float] = {}
    for token in ranked:
        if sum(kept.values()) >= top_p * total:
            break
        kept[token] = p[token]
    highest = max(kept.values())
    kept = {token: value for token, value in kept.items() if value >= min_p * highest}
    return [kept.get(token, 0.0) / sum(kept.values()) for token in range(len(p))]


def table_logits(prefix: Text, longest: int) -> Floats:
    """Return the model's row after a prefix, looked up by each position's token and the latent that is closed there."""
    cells, latent, start = [], (), 0
    for position, token in enumerate(prefix):
        if closes(prefix[: position + 1]) or position == 0 or position - start + 1 == longest:
            latent, start = prefix[: position + 1], position + 1
        cells.append((token, latent))
    return CONTRAST * logits_of(tuple(cells))


def enumerate_texts(
    row: Callable[[Text], Floats], prompt: Text, length: int, distribution: Callable[[Floats], list[float]]
) -> Distributions:
    """Return the probability of every possible continuation of ``length`` tokens.

    Args:
        row: returns the logits after a prefix.
        prompt: tokens before the continuation.
        length: number of tokens of a continuation.
        distribution: turns logits into the probabilities that are sampled from.
    """
    known: Distributions = {(): 1.0}
    for _ in range(length):
        known = {
            (*text, token): p * q
            for text, p in known.items()
            for token, q in enumerate(distribution(row(prompt + text)))
            if q > 0.0
        }
    assert sum(known.values()) == pytest.approx(1.0)
    return known


def surprise(seen: Counter[Text], expected: Distributions) -> float:
    """Return the p-value of Pearson's chi-squared test; continuations expected fewer than five times are one cell."""
    total = seen.total()
    if not set(seen) <= set(expected):
        return 0.0  # a continuation that the model cannot produce
    cells, rare_seen, rare_expected = [], 0.0, 0.0
    for text, p in expected.items():
        if total * p < 5:
            rare_seen, rare_expected = rare_seen + seen[text], rare_expected + total * p
        else:
            cells.append((float(seen[text]), total * p))
    if rare_expected:
        cells.append((rare_seen, rare_expected))
    assert len(cells) > 10, "too few cells for a test"
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    degrees = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)))


def remember_distributions(sampler: Sampler) -> None:
    """Let a sampler compute the distribution of each row of logits once; thousands of texts share few rows."""
    compute, known = sampler.distribution, dict[bytes, Distribution]()

    def distribution(rows: DecoderRows, index: int, *, masked: bool = True) -> Distribution:
        key = rows.logits[index].tobytes()
        if key not in known:
            known[key] = compute(rows, index)
            known[key].setflags(write=False)  # what is shared must not be changed
        return known[key]

    sampler.distribution = distribution  # type: ignore[method-assign]


class Sampling:
    """Counts sampled continuations of a prompt, and how many drafted bytes were accepted."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        remember_distributions(sampler)
        self.seen: Counter[Text] = Counter()
        self.drafted = self.accepted = self.rounds = 0

    def run(self, backend: Backend, method: str, prompt: Text, length: int, samples: int) -> None:
        for _ in range(samples):
            session = Session(backend)
            session.append(prompt[1:])
            for step in rounds_of(parse_method(method), session, self.sampler):
                self.drafted += step.drafted
                self.accepted += step.accepted
                self.rounds += 1
                if session.length >= len(prompt) + length:
                    break
            self.seen[tuple(session.tokens[len(prompt) :][:length].tolist())] += 1
