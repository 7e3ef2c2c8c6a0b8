"""Generates after prompts: BLT-D beside the autoregressive text, and sampled text for its diversity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastblt.runtime.blt_runtime import BltRuntime


@dataclass(frozen=True)
class Generated:
    """Holds the texts of one method, one after each prompt."""

    method: str
    texts: tuple[bytes, ...]
    decoder_calls: int
    """Decoder NFEs, those of the prompts included."""
    top_p: float | None = None
    """None: greedy."""
    gamma: float | None = None
    """Entropy bound of a block method, nats."""
    nats: float | None = None
    """Code length of all texts as the model itself predicts them, byte by byte; None: not measured."""

    @property
    def bytes(self) -> int:
        """Return the bytes of all texts."""
        return sum(map(len, self.texts))


def generate_all(
    runtime: BltRuntime,
    prompts: Sequence[bytes],
    new_bytes: int,
    method: str,
    *,
    top_p: float | None = None,
    gamma: float | None = None,
    seed: int = 0,
) -> Generated:
    """Generate after every prompt; a document that ends earlier ends there. Sampled text is scored, too.

    Args:
        runtime: loaded.
        prompts: any bytes.
        new_bytes: most bytes of a text.
        method: as the user names it.
        top_p: sample at temperature 1 from this nucleus; None: greedy.
        gamma: noted in the result.
        seed: the first text's; the next one's is one greater.
    """
    temperature, nucleus = (0.0, 1.0) if top_p is None else (1.0, top_p)
    texts, calls, nats = [], 0, 0.0
    for index, prompt in enumerate(prompts):
        found = runtime.generate(
            prompt, new_bytes, method=method, temperature=temperature, top_p=nucleus, seed=seed + index
        )
        texts.append(found.data)
        calls += found.stats.decoder_calls
        if top_p is not None:
            nats -= runtime.score(prompt, found.data).total
    return Generated(method, tuple(texts), calls, top_p, gamma, None if top_p is None else nats)


def equal_bytes(a: bytes, b: bytes) -> int:
    """Return the number of positions at which two texts have the same byte."""
    return sum(x == y for x, y in zip(a, b, strict=False))


def type_token_ratio(text: bytes) -> float | None:
    """Return the different words divided by all words, which white space separates; None where there are none."""
    words = text.split()
    return len(set(words)) / len(words) if words else None
